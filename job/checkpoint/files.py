"""Names of the files that a checkpoint consists of, for those who write, load, verify and compare it."""

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
STATE, TOKENIZER = "state.json", "tokenizer.json"
