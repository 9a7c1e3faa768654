"""`align plan`: what a recipe will take, told before it is run: memory by part, tokens, steps, time.

`volume` counts what goes through the model, `tracing` runs the real scoring code on a model without weights,
`memory` makes bytes by part of that, `sharding` deals them to devices, `probe` takes the time on the real device,
`advice` says what to change, and `command` prints.
"""
