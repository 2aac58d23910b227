"""A task's accuracy and each choice's score by lm-eval, as JSON: run with the clients' Python.

python lm_eval_scores.py TASK FOLDER MODEL_ARGUMENTS...    (each a JSON object: one run)
"""

import json
import sys
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager


def scores(task: str, folder: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Of the rows in order."""
    results = simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=[task],
        batch_size=4,
        # Its own tasks take ten seconds to read.
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        bootstrap_iters=0,
    )
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return {
        "accuracy": results["results"][task]["acc,none"],
        "scores": [[answer[0] for answer in sample["filtered_resps"]] for sample in samples],
    }


if __name__ == "__main__":
    task, folder, *runs = sys.argv[1:]
    sys.stdout.write(json.dumps([scores(task, folder, json.loads(run)) for run in runs]))
