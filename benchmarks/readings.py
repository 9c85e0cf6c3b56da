"""What the tables of docs/results.md show, in words. Read these again whenever a table is made anew."""

LOOKS = """## Where it looks

![attention shares](results/attention-smol.png)

`foveate inspect attention --model smol`, ten descriptions of validation pictures (the paper's Figure 2). `scenes`
pays nine tenths of its attention to the image everywhere. This model pays an eighth: 16 % at the first words, and
11 % after thirty. Meanwhile the answer's own share grows from nothing to 36 %. So the image's share falls,
slowly.

It lies in few layers. In layers 0, 8, 14, 15, 17 and 21 to 24 of 30 it is 12 to 44 %. In seventeen others it is
under 5 %. It grows with every object that the answer names, about every six words. The plot shows this as bright
spots on the right.

## First methods, at several layers

`make results-smol`: {pictures} test pictures from number 1,000 on, with a description, a caption and six questions of
each. Figures are in %, with 95 % intervals. {source}

- At half of the tokens, FastV's own ranking loses little that twelve pictures can show, at any layer. A deep cut
  makes fewer of the named objects right: 86, 82 and 73 % at layers 2, 8 and 15. At a quarter before layer 2 it
  loses 15 points of objects.
- Evenly spread tokens lose nothing at half. Random tokens cost more, in objects and in questions of color and shape.
  FastV at layer 2 loses there too.
- VTW destroys every description, at half and at three quarters of the depth: layers that look at the image come after
  its cut. Short questions of existence and relations are already answered before layer 22.

These are twelve pictures, and most intervals overlap.

"""
READING = {
    "zoo-0.5": """## Every method at half of the tokens

`make results-zoo MODEL={model}` sets each method's `keep` (or the knob named) so that the layers of the prefill
see half of the visual tokens on average. Methods that set their own count (`prumerge`, `fitprune`) run as they
are; see the column "tokens".
""",
    "zoo-0.25": """## A quarter
""",
    "zoo-0.125": """## An eighth
""",
    "search-gsearch": """## G-Search's schedule

`make results-search` compares three things. The first is the schedule that `foveate search --ranking diverse
--tolerance 0.05` found on 48 training examples. The second is random and evenly spread tokens under the same
schedule. The third is single cuts at the same mean tokens.

- The schedule keeps 44 % at layer 0, falling to 31 % at the last ([plot](results/search/scenes/schedules.png)). FLOPs
  fall 2.2 times. No loss is found in objects or questions. In CIDEr the interval allows one.
- The single cut of the same ranking and cost keeps as many objects, but loses CIDEr. So the shape over depth adds a
  little here.
- The same counts with random or even tokens lose 16 to 25 points. So the ranking is most of it.
- Joined with `scenes-0.33-decode`, which also drops while decoding, it takes 0.26 of the FLOPs and of the KV
  bytes. It loses 3 points of objects (6 to 0), as that predictor alone does at 0.33.
- The premise does not hold. Layers rank alike at tau 0.56 by diversity, and at 0.12 by the last token's attention
  ([plot](results/search/scenes/ranking-last.png)).
""",
    "search-0.5": """## P-Sigmoid at half of the tokens

A searched sigmoid over the layers and FitPrune's recipe are compared with other shapes of the same mean: one cut
(`fastv`), stages (`pdrop`), and one cut of evenly spread (`downsample`) or random tokens. `score=random` and
`score=even` keep the counts of the searched schedule, and other tokens.

Half is too easy to separate shapes: every shape with a good ranking loses nothing. Stages deep in the decoder, by the
last token's attention, lose three quarters.
""",
    "search-0.25": """## P-Sigmoid at a quarter

The search finds what FitPrune's recipe finds: nearly all tokens in layer 0, then a flat sixth. This is worth 35
points of CIDEr against one cut before layer 0 or an unsearched sigmoid (the intervals overlap), and nothing in
objects. FastV's own ranking loses at layer 2, but not at layer 1.
""",
    "search-0.125": """## P-Sigmoid at an eighth

The search makes its sigmoid flat. It is 13 points ahead of the unsearched one (87 against 74), and level with one
cut before layer 0 by diversity. Cuts that need attention first cannot reach this budget: layer 0 alone is an
eighth of these eight layers.
""",
    "adapting": """## What adapting is worth

`make results-adapting` uses answers of validation scenes that no training and no choice has seen: a description, a
caption or a question. Each answer runs at every rate, so all lines are of the same answers. A cell has the share of
visual tokens kept, and the cross-entropy of the answers (nats, mean over an answer's words).

*One rate for all* takes the predictor's FLOPs. So do the best rate of each *kind* of prompt and of each *prompt*,
both chosen in hindsight. The brackets have the predictor minus one rate for all, with its 95 % interval.

**Adapting pays** where tokens are scarce. At a third of the FLOPs `scenes-0.33` gives descriptions 15 % of their
tokens, captions 39 % and questions 24 %. One rate gives 26 % to all. The predictor recovers 0.038 of the 0.082
nats that one rate loses. It even beats the best rate of each kind, so it also separates prompts of one kind.
`scenes-0.5`, by another ranking, recovers 0.0035 of the 0.012 nats that are lost at all. The best rate of each
prompt in hindsight would lose next to nothing.
""",
    "dyrate-0.5": """## DyRate and its controls at equal FLOPs

`make results-dyrate` compares a bundled predictor, named by its budget (met on its training answers), with its
controls. It decides in the prefill. The control `adapt=step` adapts to the step only: at each step it keeps what
the predictor keeps on average. Fixed cuts by either ranking before layers 0 and 1 get the FLOPs that the
predictor used. The second table of each pair has the paired differences to the predictor. dev/LOG.md tells how
the predictors were found, and what failed.

`scenes-0.5` ranks by the last token's attention before layer 1. At half of the FLOPs this loses so little that
nothing is left to gain. Predictor, `adapt=step` and the fixed cut of its ranking are level, with all objects and
408 to 410 of 419 of CIDEr (23 down to 4 up). A predictor for 0.5 was also trained with diversity before layer 0
(dev/LOG.md). There adapting was worth 29 points of CIDEr (18 to 41), and the result was level with these. Random
and evenly spread tokens lose 19 and 10 points of objects.
""",
    "dyrate-0.33": """### At a third

- At 0.331 of the FLOPs the predictor has 373 of 419 of CIDEr. **Its controls of the same ranking and layer,
  `adapt=step` and fixed, have 24 and 25 points less (10 to 41): adapting pays.** It gives captions the tokens
  that descriptions hardly need. Those lose 1.7 points of objects against the controls (0.4 to 3.0).
- The predictor is not above *every* control. The fixed cut by the last token's attention before layer 1, of the other
  ranking, has 14.5 points of CIDEr more (5 fewer to 34 more), and 0.8 of objects (1.0 fewer to 2.6 more).
- The goal was CIDEr not below the unpruned model's at a third of the FLOPs. All of them miss it. The predictor
  loses 46 (66 to 29), the best cut 32 (52 to 10).
- Why: on eight layers, one layer of all tokens is an eighth of the FLOPs, and text and answer are another. What
  remains is a quarter of the tokens before layer 0, or a seventh before layer 1. Captions name the largest object
  first, and its size shows in how many tokens it has.
- At layers 2 and 3, as in the paper's Table II, FastV loses 53 and 286 points of CIDEr at twice the FLOPs, and
  VTW 271.
- `scenes-0.33-decode` decides before every step, by the paper's masks. It goes from 13 % at the prefill to 5 %. This
  costs 2.4 points of objects against deciding once (0.3 to 4.6). It saves a seventh of the KV bytes, and hardly any
  FLOPs: decode steps are matrix products, not attention.
""",
    "dyrate-0.2": """### At a fifth

A tenth of the tokens is left to divide. The predictor is level with its controls. Five points of objects and a
quarter of CIDEr are lost. Random and evenly spread tokens lose 60 points of objects.
""",
    "dyrate-0.25": """### At a quarter

A tenth of the tokens. All objects are still found; of those named, 24 points fewer are right. Fixed cuts before
layer 1 lose 10 and 12 points of objects, random and evenly spread tokens 65 and 40. Controls of its own ranking
and layer are level.
""",
    "dyrate-asked": """### Short answers, by kind of question

This is the paper's Table I: exact answers at a third of the FLOPs. On drawn pictures the predictor loses 2.5
points (5.3 to 0), fixed cuts of either ranking 3 to 4, evenly spread and random tokens 13 to 28. Only counting
suffers. FastV at layers 2 and 3 loses 5 and 12 at twice the FLOPs, VTW 28. One large shape fills a picture of
easy-vqa, so any tokens will do there; only VTW loses.
""",
}
OWN = {  # of smol, in place of the above
    "search-gsearch-smol": """## G-Search's schedule

`make results-search MODEL=smol` (24 training examples) finds 37 % of the tokens from layer 0 to 17, then fewer
and fewer, and 12 % from layer 26 on ([plot](results/search/smol/schedules.png)). This is what the paper assumes.
FLOPs fall 2.5 times.

- Objects found and questions stay as they were, within what twelve pictures show. Of the objects named, fewer are
  right (15 points, 6 to 25). So it is not free.
- Against one cut of the same ranking and cost no difference is found. Here the shape saves late what the cut
  saves early.
- Random and even tokens under the same counts lose half of the objects and more.
- By the last token's attention layers rank alike at tau 0.39 ([plot](results/search/smol/ranking-last.png)). This
  is more than in `scenes` and less than the paper's 0.7. Neighbours from layer 21 on agree best.
- `smol-0.33-decode` keeps a tenth of one picture's tokens and 30 % of another's. Joined with it, the schedule
  takes 0.29 of the FLOPs; alone it takes 0.41, and the predictor 0.34. Together they find as many objects, and
  name fewer right (8 points less than alone).
""",
    "search-0.5-smol": """## P-Sigmoid at half of the tokens

The search finds one cut before layer 1. It keeps all objects, as its flat neighbours do. An unsearched sigmoid
(`psigmoid`) drops nearly all tokens before the layers that look at the image, and loses more than half of the
objects.
""",
    "search-0.25-smol": """## P-Sigmoid at a quarter

The search flattens its sigmoid again, and FitPrune's recipe is flat after layer 0. Both, one cut by diversity,
and FitPrune's own ranking are alike: as many objects as unpruned, and of those named 17 points fewer right.
Stages (`pdrop`) find 58 to 65 %, evenly spread tokens 55, FastV and random ones 45 to 48, an unsearched sigmoid
none.
""",
    "search-0.125-smol": """## P-Sigmoid at an eighth

The search makes its sigmoid flat, which is one cut before layer 0 by diversity. All objects are still found; of
those named, a quarter fewer are right. FastV, stages, evenly spread and random tokens find 15 to 40 %, an
unsearched sigmoid none. The gain over FastV, 57 points of objects, comes from ranking and layer, not from the
shape.
""",
    "zoo-0.5-smol": """## Every method at half of the tokens

`make results-zoo MODEL=smol` takes half an hour on two cores for all three tables. **These three tables and their
plot are of the weights before the last 100 steps of training**, which taught it to talk again. Its unpruned
descriptions are as good, and a repeated run at a quarter came out alike.

Twelve pictures cannot separate methods that differ by fewer than some fifteen points of objects. They do show
this: at half of the tokens most methods lose nothing, random and evenly spread tokens included. The last token's
attention at layer 2 loses (`fastv`, and `psigmoid`, which goes on cutting by it). So does averaging neighbours
(`pool=true`). VTW loses everything. `prumerge` keeps a twentieth.
""",
    "zoo-0.25-smol": """## A quarter

Methods that select before the language model, by the tower's attention or by diversity, and mergers still lose no
objects that twelve pictures can show: `vscan1`, `tome`, `dymu`, `divprune`, `cdpruner`, `vispruner`, `flowcut`.
Of the objects named, 10 to 23 points fewer are right. Random tokens lose half of the objects, evenly spread ones
and FastV's ranking two fifths. DART lies between. Deep cuts lose everything.
""",
    "zoo-0.125-smol": """## An eighth

The same methods lead, and lose 5 to 18 points of 80. Evenly spread tokens lose 43, random ones 55 and more. The last
token's attention loses more than random tokens.
""",
    "adapting-smol": """## What adapting is worth

As on `scenes` below: shares of tokens kept, and cross-entropy.
""",
    "dyrate-0.5-smol": """## DyRate and its controls at equal FLOPs

`make results-dyrate MODEL=smol`, as on `scenes` below. The predictors learned from 178 answers, which is few. At
half of the FLOPs (0.547 on these pictures, of whose tokens it keeps 48 %; 42 % of the training answers') all
objects stay. This holds for the predictor, its controls, and even random tokens, within what twelve pictures
show. Of the objects named, 8 points fewer are right. No two methods differ.
""",
    "dyrate-0.33-smol": """### At a third, with the one that decides at every step and the paper's rows

- The predictor for 0.33 gives descriptions 28 % of their tokens, captions and questions 17 and 18 %. All objects
  stay found. **Of those named, 12 points more are right than under one fixed cut of the same ranking and FLOPs (1
  to 21)**, 15 more than under that before layer 1 (3 to 25), and 10 more than under `adapt=step` (1.5 fewer to 20
  more). So adapting shows here, too. It does not on the 18 held-out answers, by their cross-entropy.
- A cut by the last token's attention before layer 1 finds 7.5 points fewer objects (17 fewer to as many), 6 fewer
  right (14 fewer to 1 more), and has 63 points more of CIDEr (4 to 145).
- Random and evenly spread tokens lose 52 and 38 points of objects.
- `smol-0.33-decode` may decide before every step, and has learned to decide once. It keeps 10 % of one picture's
  tokens and 30 % of another's, and drops none later.
- FastV at layers 2 and 3 with half of the tokens, at 0.6 of the FLOPs, loses nothing. VTW loses everything.
""",
    "dyrate-asked-smol": """### Short answers, by kind of question

This is the paper's Table I: exact answers to 24 questions on drawn pictures and 24 of easy-vqa. So few show
little. At 0.276 of the FLOPs the predictor, `adapt=step` and the fixed cut of its ranking answer as many as the
unpruned model. Random tokens answer 37 points fewer, evenly spread ones 8 (25 to 0). FastV at layers 2 and 3 with
twice the FLOPs loses 4 and 0, VTW 50.
""",
}
