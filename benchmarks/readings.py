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

`make results-smol`: {pictures} test pictures from number 1,000 on, a description, a caption and six questions of each,
in % with 95 % intervals. Read it so: at half the tokens, FastV's own ranking loses little that twelve pictures could
show, wherever it cuts; cut deep, fewer of the objects named are right (86, 82, 73 % at layers 2, 8, 15), and at a
quarter before layer 2 it loses 15 points of objects. Thinning evenly to half loses nothing; random tokens cost more, in
objects and in questions of colour and shape, where FastV at layer 2 loses too. VTW destroys every description, at half
and at three quarters of the depth: layers that look at the image come after its cut. Short questions of existence and
relations are answered before layer 22 already. These are twelve pictures: most intervals overlap.

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
ranking and cost keeps as many objects, but loses CIDEr: here the shape over depth adds a little. The same counts
with random or even tokens lose 16 to 25 points, so the ranking is most of it. Joined with a predictor that goes on
dropping while it decodes, the schedule loses what that predictor loses, and less than it does alone, for fewer
FLOPs. The premise does not hold: layers rank alike at tau 0.56 by diversity and at 0.12 by the last token's
attention ([drawn](results/search/scenes/ranking-last.png)).
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
    "dyrate-0.7": """## DyRate and its controls at equal FLOPs

`make results-dyrate`: a bundled predictor, named by its budget; its control in the step alone (`adapt=step`), which
keeps at each step what the predictor keeps on average; and fixed cuts before the same layer at about those FLOPs. The
predictors are those of `foveate train dyrate --budget 0.7` (or `0.5`) `--layer 2 --ranking mix --num-rates 20
--steps 120 --batch 6 --held-out 48`.

At 0.7 (met on its own kind of data, descriptions and captions; on these, with questions, it keeps more) the predictor
loses nothing, and nor does a fixed cut of the same ranking for less. It has learned not to drop while decoding.
""",
    "dyrate-0.5": """### At the budget 0.5

The predictor loses by far to a fixed cut of the same ranking: it goes on dropping while it decodes, and a description
needs every object until it was named. Against its control in the step alone it is ahead in objects by 5 points, whose
intervals overlap. That adapting to the input pays is shown at neither budget.
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
neighbours from layer 21 on. No predictor for `smol` ships, so there is no row with one.
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
}
