"""Standard tasks: a run under any ablation mode as a model of lm-eval (the extra `eval`).

    as_lm          a run as a model that `lm_eval.simple_evaluate` takes
    measure_tasks  tasks x modes -> eval/tasks.jsonl -> eval/tasks.json -> a table

lm-eval is imported when it is used, which takes seconds.
"""

from gradroute.harness.evaluator import measure_tasks as measure_tasks
from gradroute.harness.model import as_lm as as_lm
