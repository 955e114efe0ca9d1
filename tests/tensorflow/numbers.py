"""Numbers of a small GPT-2 under OpenAI's names: what TensorFlow wrote into the checkpoint that is kept beside this."""

import numpy as np

HPARAMS = {"n_vocab": 19, "n_ctx": 8, "n_embd": 8, "n_head": 2, "n_layer": 3}
SHARDS = 3


def openai_shapes(hparams):
    """The shape of each variable by name."""
    V, T, C = hparams["n_vocab"], hparams["n_ctx"], hparams["n_embd"]
    norm = {"g": (C,), "b": (C,)}
    layer = {
        **{f"ln_1/{name}": shape for name, shape in norm.items()},
        "attn/c_attn/w": (1, C, 3 * C),
        "attn/c_attn/b": (3 * C,),
        "attn/c_proj/w": (1, C, C),
        "attn/c_proj/b": (C,),
        **{f"ln_2/{name}": shape for name, shape in norm.items()},
        "mlp/c_fc/w": (1, C, 4 * C),
        "mlp/c_fc/b": (4 * C,),
        "mlp/c_proj/w": (1, 4 * C, C),
        "mlp/c_proj/b": (C,),
    }
    found = {"model/wte": (V, C), "model/wpe": (T, C), "model/ln_f/g": (C,), "model/ln_f/b": (C,)}
    for number in range(hparams["n_layer"]):
        found |= {f"model/h{number}/{name}": shape for name, shape in layer.items()}
    return found


def variables(hparams=None, seed=0):
    """Normal float32 numbers for each variable."""
    source = np.random.default_rng(seed)
    shapes = openai_shapes(hparams or HPARAMS)
    return {name: source.standard_normal(shape, np.float32) for name, shape in sorted(shapes.items())}
