"""Roll-outs: answers of the policy to prompts, verified, judged step by step, trained on; in rounds.

`prompts` says which prompts, `sample` and `judge` are the two stages, `iterate` the rounds of them and of training,
`commands` what a user calls. `options` and `checks` are their sections of a recipe.

A line of `rollouts.jsonl` and `judged.jsonl` is a record, with `reference` (what is known to be right) beside it. Right
answers are positives, wrong ones negatives, and those that are cut off or hold nothing to compare are samples with a
`note`: nothing learns from them.
"""
