#!/usr/bin/env bash
# label-studio-sdk 2.1.2: a task cannot be checked once it has an annotation or a prediction
#
# Where two meet: a task file as labeling tools exchange it (text, and the labels of a reviewer) and
# the check that the SDK offers for tasks before an import, `LabelInterface.validate_task`.
# Guess, written down before it was run: the check looks at the annotations of a task too.
# Seen: a task with text alone is valid. The same task with a valid annotation or prediction raises
# a TypeError about a missing argument; the annotation checked by itself is valid.
# Output: what each call gives.
# Source: validate_task in label_studio_sdk/label_interface/interface.py calls validate_annotation()
# and validate_prediction() without the annotation or prediction that both need.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q label-studio-sdk==2.1.2
cat > look.py <<'PYTHON'
from label_studio_sdk.label_interface import LabelInterface

interface = LabelInterface(
    '<View><Text name="text" value="$text"/><Choices name="label" toName="text">'
    '<Choice value="bad"/><Choice value="good"/></Choices></View>'
)
choice = {"from_name": "label", "to_name": "text", "type": "choices"}
marked = {"result": [{**choice, "value": {"choices": ["bad"]}}]}
row = {"data": {"text": "a row"}}
print("text alone:", interface.validate_task(row))
print("annotation by itself:", interface.validate_annotation(marked))
for key in ("annotations", "predictions"):
    try:
        print(f"with {key}:", interface.validate_task({**row, key: [marked]}))
    except TypeError:
        print(f"with {key}: TypeError")
PYTHON
env/bin/python look.py 2> warnings.txt | tee seen.txt
diff seen.txt - <<'SEEN'
text alone: True
annotation by itself: True
with annotations: TypeError
with predictions: TypeError
SEEN
