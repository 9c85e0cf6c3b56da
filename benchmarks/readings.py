"""What the tables of docs/results.md show, in words: read again whenever a table is made anew."""

LOOKS = """## Where it looks

![attention shares](results/attention-smol.png)

`foveate inspect attention --model smol`, ten descriptions of validation pictures (the paper's Figure 2). Unlike
`scenes`, which pays nine
tenths of its attention to the image everywhere, this model pays it an eighth: 16 % at the first words, 11 % after
thirty, while the answer's own share grows from nothing to 36 %. So the image's share does fall, slowly. It lies in few
layers: 0, 8, 14, 15, 17 and 21 to 24 of 30, where it is 12 to 44 %; in seventeen others it is under 5 %.
There it swells with every object that the answer takes up: six words apart, bright on the right.

## First methods, at several layers

`make results-smol`: {pictures} test pictures from number 1,000 on, a description, a caption and six questions of
each, in % with 95 % intervals. {source}

Read it so: at half the tokens, FastV's own ranking loses little that twelve pictures could show, wherever it cuts;
cut deep, fewer of the objects named are right (86, 82, 73 % at layers 2, 8, 15), and at a quarter before layer 2 it
loses 15 points of objects. Thinning evenly to half loses nothing; random tokens cost more, in objects and in
questions of colour and shape, where FastV at layer 2 loses too. VTW destroys every description, at half and at three
quarters of the depth: layers that look at the image come after its cut. Short questions of existence and relations
are answered before layer 22 already. These are twelve pictures: most intervals overlap.

"""
READING = {
    "zoo-0.5": """## Every method at half the tokens

`make results-zoo MODEL={model}`: each method's `keep` (or the knob named) is set so that the layers of the prefill
see half the visual tokens on average. What sets its own count (`prumerge`, `fitprune`) runs as it is: look at its
tokens.
""",
    "zoo-0.25": """## A quarter
""",
    "zoo-0.125": """## An eighth
""",
    "search-gsearch": """## G-Search's schedule

`make results-search`: the schedule that `foveate search --ranking diverse --tolerance 0.05` found on 48 training
examples; under the same schedule random tokens and evenly spread ones; and single cuts at the same mean tokens. It
keeps 44 % at layer 0, falling to 31 % at the last ([drawn](results/search/scenes/schedules.png)). FLOPs fall 2.2
times, and no loss is found in objects or questions; in CIDEr the interval allows one. The single cut of the same
ranking and cost keeps as many objects, but loses CIDEr: here the shape over depth adds a little. The same counts with
random or even tokens lose 16 to 25 points, so the ranking is most of it. Joined with `scenes-0.33-decode`, which goes
on dropping while it decodes, it takes 0.26 of the FLOPs and of the KV bytes, and loses 3 points of objects (6 to 0),
as that predictor does alone at 0.33. The premise does not hold: layers rank alike at tau 0.56 by diversity and at
0.12 by the last token's attention ([drawn](results/search/scenes/ranking-last.png)).
""",
    "search-0.5": """## P-Sigmoid at half the tokens

A searched sigmoid over the layers, and FitPrune's recipe, beside other shapes of the same mean: one cut (`fastv`),
stages (`pdrop`), and one cut of evenly spread (`downsample`) or random tokens. `score=random` and `score=even` keep
the counts of the searched schedule, and other tokens. Half is too easy to tell shapes apart: every shape with a good
ranking loses nothing. Stages deep in the decoder, by the last token's attention, lose three quarters.
""",
    "search-0.25": """## P-Sigmoid at a quarter

The search finds what FitPrune's recipe finds: nearly all tokens in layer 0, then a flat sixth. That is worth 35
points of CIDEr against one cut before layer 0 or an unsearched sigmoid (intervals overlap), and nothing in objects.
FastV's own ranking, which loses at layer 2, loses nothing at layer 1.
""",
    "search-0.125": """## P-Sigmoid at an eighth

The search makes its sigmoid flat, and is 13 points ahead of the unsearched one (87 against 74), level with one cut
before layer 0 by diversity. Cuts that need attention first are out of reach: layer 0 alone is an eighth of these
eight layers.
""",
    "adapting": """## What adapting is worth

`make results-adapting`: answers of validation scenes that no training and no choice has seen, a description, a
caption or a question, each run at every rate; so all lines are of the same answers. In each cell the share of visual
tokens kept and the cross-entropy of the answers (nats, mean over an answer's words). *One rate for all* takes the
predictor's FLOPs, as do the best rate of each *kind* of prompt and of each *prompt*, both chosen in hindsight; in
brackets the predictor less one rate for all, with its 95 % interval. **Adapting pays** where tokens are short: at a
third of the FLOPs `scenes-0.33` gives descriptions 15 % of their tokens, captions 39 and questions 24, where one rate
gives 26 to all, and takes back 0.038 of the 0.082 nats that one rate loses; it is ahead even of the best rate of each
kind, so it tells prompts of one kind apart, too. `scenes-0.5`, by another ranking, takes back 0.0035 of the 0.012
that are lost at all. The best rate of each prompt in hindsight would lose next to nothing.
""",
    "dyrate-0.5": """## DyRate and its controls at equal FLOPs

`make results-dyrate`: a bundled predictor, named by its budget (met on its training answers), deciding in the
prefill; its control in the step alone (`adapt=step`), which keeps at each step what the predictor keeps on average;
and fixed cuts by either ranking before layers 0 and 1, set to the FLOPs that the predictor came to. The second table
of each pair has the paired differences to the predictor. dev/LOG.md tells how the predictors were found, and what
failed.

`scenes-0.5` ranks by the last token's attention before layer 1, which loses so little at half the FLOPs that nothing
is left to win: predictor, its control in the step alone and the fixed cut of its ranking are level, with all objects
and 408 to 410 of 419 of CIDEr (23 down to 4 up). By diversity before layer 0 (a predictor for 0.5 of that ranking was
trained and measured too: dev/LOG.md) adapting was worth 29 points of CIDEr (18 to 41), and came out level with these.
Random and evenly spread tokens lose 19 and 10 points of objects.
""",
    "dyrate-0.33": """### At a third

At 0.331 of the FLOPs the predictor has 373 of 419 of CIDEr. **Its controls in the step alone and fixed, of the same
ranking and layer, have 24 and 25 points less (10 to 41): adapting pays**, by giving captions the tokens that
descriptions hardly need. Hardly: those lose 1.7 points of objects against the controls (0.4 to 3.0). Of the other
ranking, the fixed cut by the last token's attention before layer 1 has 14.5 points of CIDEr more (5 fewer to 34 more)
and 0.8 of objects (1.0 fewer to 2.6 more), so the predictor is not above *every* control. The goal, CIDEr not below
the unpruned model's at a third of the FLOPs, is missed by all of them: the predictor loses 46 (66 to 29), the best
cut 32 (52 to 10). Why: on eight layers, one layer of all tokens is an eighth of the FLOPs, text and answer another;
what remains is a quarter of the tokens before layer 0 or a seventh before layer 1, and captions name the largest
object first, whose size shows in how many tokens it has. At layers 2 and 3, as in the paper's Table II, FastV loses
53 and 286 points of CIDEr at twice the FLOPs, VTW 271. `scenes-0.33-decode` decides before every step, by the paper's
masks: from 13 % at the prefill to 5 % it costs 2.4 points of objects against deciding once (0.3 to 4.6), and saves a
seventh of the KV bytes and hardly any FLOPs: decode steps are matrix products, not attention.
""",
    "dyrate-0.2": """### At a fifth

A tenth of the tokens is left to divide. The predictor is level with its controls; five points of objects and a
quarter of CIDEr are lost, random and evenly spread tokens lose 60 points of objects.
""",
    "dyrate-0.25": """### At a quarter

A tenth of the tokens: all objects are still found (of those named, 24 points fewer are right), where fixed cuts
before layer 1 lose 10 and 12 points of objects, random and evenly spread tokens 65 and 40. Of its own ranking and
layer, controls are level.
""",
    "dyrate-asked": """### Short answers, by kind of question

The paper's Table I: exact answers at a third of the FLOPs. Drawn pictures lose 2.5 points under the predictor (5.3 to
0), 3 to 4 under fixed cuts of either ranking, 13 to 28 under evenly spread and random tokens; only counting suffers.
FastV at layers 2 and 3 loses 5 and 12 at twice the FLOPs, VTW 28. One large shape fills a picture of easy-vqa, so any
tokens will do there; only VTW loses.
""",
}
OWN = {  # of smol, in place of the above
    "search-gsearch-smol": """## G-Search's schedule

`make results-search MODEL=smol` (24 training examples): 37 % of the tokens from layer 0 to 17, then fewer and fewer,
12 % from layer 26 on ([drawn](results/search/smol/schedules.png)): what the paper assumes, found. FLOPs fall 2.5
times. Objects found and questions stay as they were within what twelve pictures show; of the objects named, fewer
are right (15 points, 6 to 25), so it is not free. Against one cut of the same ranking and cost nothing is told
apart, here the shape only saves late what the cut saves early. Random and even tokens under the same counts lose
half of the objects and more. By the last token's attention layers rank alike at tau 0.39
([drawn](results/search/smol/ranking-last.png)), more than in `scenes`, less than the paper's 0.7, and best among
neighbours from layer 21 on. Joined with
`smol-0.33-decode`, which keeps a tenth of one picture's tokens and 30 % of another's, the schedule takes 0.29 of the
FLOPs where it takes 0.41 alone and the predictor 0.34, finds as many objects, and names fewer right (8 points less
than alone).
""",
    "search-0.5-smol": """## P-Sigmoid at half the tokens

The search finds one cut before layer 1, and keeps all objects, as its flat neighbours do; a sigmoid as it comes
(`psigmoid`), which drops nearly all before the layers that look at the image, loses more than half of them.
""",
    "search-0.25-smol": """## P-Sigmoid at a quarter

The search flattens its sigmoid again, and FitPrune's recipe is flat after layer 0; both, one cut by diversity and
FitPrune's own ranking are alike: as many objects as unpruned, of those named 17 points fewer right. Stages (`pdrop`)
find 58 to 65 %, evenly spread tokens 55, FastV and random ones 45 to 48, a sigmoid as it comes none.
""",
    "search-0.125-smol": """## P-Sigmoid at an eighth

The search makes its sigmoid flat, which is one cut before layer 0 by diversity: all objects are still found (of
those named, a quarter fewer are right), where FastV, stages, evenly spread and random tokens find 15 to 40 %, and a
sigmoid as it comes none. The gain over FastV, 57 points of objects, is that of ranking and layer, not of the shape.
""",
    "zoo-0.5-smol": """## Every method at half the tokens

`make results-zoo MODEL=smol`, half an hour on two cores for all three tables. **These three tables and their plot
are of the weights before the last 100 steps of training**, which taught it to talk again; its unpruned descriptions
are as good, and a quarter, run again, came out alike. Twelve pictures: differences of fewer than some fifteen points
of objects are not told apart. What can be told: at half the tokens most methods lose nothing, random and evenly
spread tokens included; the last token's attention at layer 2 (`fastv`, and `psigmoid`, which goes on cutting by it)
loses, as does averaging neighbours (`pool=true`); VTW loses everything. `prumerge` keeps a twentieth.
""",
    "zoo-0.25-smol": """## A quarter

What chooses before the language model, by the tower's attention or by diversity, or merges (`vscan1`, `tome`,
`dymu`, `divprune`, `cdpruner`, `vispruner`, `flowcut`), still loses no objects that twelve pictures could show (of
those named, 10 to 23 points fewer are right); random tokens lose half of the objects, evenly spread ones and FastV's
ranking two fifths. DART lies between. What cuts deep loses everything.
""",
    "zoo-0.125-smol": """## An eighth

The same methods lead, and lose 5 to 18 points of 80; evenly spread tokens lose 43, random ones 55 and more, and the
last token's attention more than random.
""",
    "adapting-smol": """## What adapting is worth

As on `scenes` below: shares of tokens kept, and cross-entropy.
""",
    "dyrate-0.5-smol": """## DyRate and its controls at equal FLOPs

`make results-dyrate MODEL=smol`, as on `scenes` below; the predictors learned from 178 answers, which is few. At half
the FLOPs (0.547 on these pictures, of whose tokens it keeps 48 %; 42 % of the training answers') predictor, controls
and, as far as twelve pictures show, even random tokens keep the objects; of those named, 8 points fewer are right.
Nothing is told apart.
""",
    "dyrate-0.33-smol": """### At a third, with the one that decides at every step and the paper's rows

The predictor for 0.33 gives descriptions 28 % of their tokens, captions and questions 17 and 18. All objects stay
found, and **of those named 12 points more are right than under one fixed cut of the same ranking and FLOPs (1 to
21)**, and 15 more than under that before layer 1 (3 to 25); 10 more than under its control in the step alone (1.5
fewer to 20 more). So adapting shows here, too, though on answers held out (18, by their cross-entropy) it does not. A
cut by the last token's attention before layer 1 finds 7.5 points fewer objects (17 fewer to as many), 6 fewer right
(14 fewer to 1 more), and has 63 points more of CIDEr (4 to 145). Random and evenly spread tokens lose 52 and 38
points of objects. `smol-0.33-decode` may decide before every step, and has learned to decide once: it keeps 10 % of
one picture's tokens, 30 of another's, and drops none later. FastV at layers 2 and 3 with half the tokens, at 0.6 of
the FLOPs, loses nothing; VTW loses everything.
""",
    "dyrate-asked-smol": """### Short answers, by kind of question

The paper's Table I: exact answers, 24 questions on drawn pictures and 24 of easy-vqa; so few tell little. At 0.276 of
the FLOPs predictor, its control in the step alone and the fixed cut of its ranking answer as many as the unpruned
model, random tokens 37 points fewer, evenly spread ones 8 (25 to 0), FastV at layers 2 and 3 with twice the FLOPs 4
and 0, VTW 50.
""",
}
