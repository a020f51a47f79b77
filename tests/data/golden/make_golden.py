#!/usr/bin/env python3
"""Draws the small facts of the reference results into one JSON file a model.

usage: make_golden.py FOLDER_WITH_THE_REFERENCE_RESULTS

The reference is llama.cpp in float32 with the file's weights dequantised. Long texts stay behind: only
their ids are kept.
"""
import json, pathlib, sys

source = pathlib.Path(sys.argv[1])
here = pathlib.Path(__file__).parent
for name in ["smollm2-135m-instruct-q4_1", "gemma-3-270m-q4_k_m"]:
    data = json.loads((source / f"{name}.json").read_text())
    prompts = [
        {"text": p["text"] if len(p["tokens"]) < 100 else None, "tokens": p["tokens"],
         "top10": p["top10"], "greedy": p["greedy"], "margin": p["margin"]}
        for p in data["prompts"]
    ]
    trace = [
        {"name": t["name"], "rms": t["rms"], "last_token_first8": t["last_token_first8"]}
        for t in data["trace"]["tensors"]
    ]
    facts = {"prompts": prompts, "trace_prompt": data["trace"]["prompt"], "trace": trace,
             "mean_nll": data["perplexity"]["mean_nll"]}
    (here / f"{name}.json").write_text(json.dumps(facts, ensure_ascii=False, separators=(",", ":")) + "\n")
