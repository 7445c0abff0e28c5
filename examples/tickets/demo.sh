#!/bin/sh
# The whole pass on one small model, on this machine: check, plan, baselines, fine-tune, measure, report.
set -eu
cd "$(dirname "$0")"
out=../../demo-out
mkdir -p "$out"
export TUNEPORT_LEDGER="$out/ledger.db" HF_HUB_OFFLINE=1

say() { printf '\n\033[1m── %s\033[0m\n' "$*"; }

say "1/6  Is the data fit to train on?"
tuneport check spec.yaml

say "2/6  What would each of the five providers do with this job, and for how much?"
tuneport plan spec.yaml --provider all

say "3/6  How far does prompting get the small model, on tickets held out from training?"
tuneport baseline spec.yaml --provider local --instruction prompt.txt --json-schema schema.json --max-tokens 40 --out "$out/measurement.json"

say "4/6  Fine-tune it here, on the same path that a vendor job takes"
tuneport submit spec.yaml --provider local --yes --detach
tuneport watch last

say "5/6  The tuned model on the same held-out tickets"
tuneport evaluate spec.yaml --job last --json-schema schema.json --max-tokens 40 --out "$out/measurement.json"

say "6/6  Whether and where to fine-tune"
tuneport advise decision.yaml --spec spec.yaml --measurement "$out/measurement.json" --out "$out"
