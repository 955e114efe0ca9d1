"""The plainest way to serve GPT-2: transformers' pipeline in a FastAPI function, one request at a time."""

import sys
from threading import Lock

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Ask(BaseModel):
    prompt: str
    max_tokens: int


def main(folder: str, port: int, threads: int) -> None:
    torch.set_num_threads(threads)
    write, one_at_a_time = pipeline("text-generation", model=folder, device="cpu"), Lock()
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> str:
        return "ok"

    @app.post("/generate")
    def generate(ask: Ask) -> dict[str, str]:
        lengths = {"max_new_tokens": ask.max_tokens, "min_new_tokens": ask.max_tokens}
        with one_at_a_time:
            return write(ask.prompt, do_sample=False, return_full_text=False, **lengths)[0]

    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
