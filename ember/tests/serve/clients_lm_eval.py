"""lm-eval against a running server: `python clients_lm_eval.py http://127.0.0.1:PORT KEY TEXT BITS`.

A task of one text, the file TEXT, is measured through `/v1/completions`, with the tokenizer of the server; the result has to be BITS, bits per
byte. Nothing is downloaded, and neither torch nor transformers are needed.
"""

import json
import os
import sys
import tempfile

URL, KEY, TEXT, BITS = sys.argv[1:]
os.environ.update(OPENAI_API_KEY=KEY, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import lm_eval
from lm_eval.tasks import TaskManager

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {data}
  cache_dir: {cache}
test_split: train
metadata:
  version: 1
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
  - metric: byte_perplexity
"""
CHOICES = """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: 0
doc_to_choice: "{{choices}}"
metric_list:
  - metric: acc
"""

text = open(TEXT, encoding="utf-8").read()
with tempfile.TemporaryDirectory() as directory:

    def task(name, kind, documents):
        data = os.path.join(directory, f"{name}.jsonl")
        with open(data, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(document) + "\n" for document in documents)
        with open(os.path.join(directory, f"{name}.yaml"), "w", encoding="utf-8") as file:
            file.write(TASK.format(name=name, data=data, cache=os.path.join(directory, "cache")) + kind)
        return name

    names = [
        task("text", ROLLING, [{"text": text}]),
        task("choices", CHOICES, [{"text": "Once upon a", "choices": ["time", "zebra"]}, {"text": "There was a little", "choices": ["girl", "of"]}]),
    ]
    results = {}
    for at_once in (1, 4):
        arguments = {"model": "demo", "base_url": f"{URL}/v1/completions", "auth_token": KEY, "num_concurrent": at_once, "max_length": 1024}
        told = lm_eval.simple_evaluate(
            model="local-completions", model_args=arguments, tasks=names, task_manager=TaskManager(include_path=directory, include_defaults=False),
            bootstrap_iters=0)["results"]
        results[at_once] = told["text"]["bits_per_byte,none"], told["choices"]["acc,none"]
        print("lm-eval:", at_once, "at once, bits per byte", results[at_once][0], "ember eval", BITS, "choices", results[at_once][1], flush=True)
    for bits, right in results.values():
        # Sums in another order.
        if abs(bits / float(BITS) - 1) > 1e-5 or right != 1.0:
            raise AssertionError((bits, BITS, right))
