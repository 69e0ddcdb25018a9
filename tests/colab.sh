#!/usr/bin/env bash
# Colab's situation: its versions of everything, a folder that holds the two notebooks and nothing else, and the data set
# behind a URL (here on loopback, and phantoms). PYTHON_COLAB chooses the interpreter; Colab's is 3.13.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON_COLAB:-}
for candidate in python3.13 "$HOME"/.pyenv/versions/3.13.*/bin/python python3.12 python3.11 "${PYTHON:-python3}"; do
    new_enough='import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
    [ -n "$python" ] || { "$candidate" -c "$new_enough" 2>/dev/null && python=$candidate; }
done
[ -n "$python" ] || { echo "Colab's versions need Python 3.11 to 3.13, and none was found: skipped."; exit 0; }
echo "Colab's versions on $("$python" --version)"
env=$root/.venv-colab
if ! [ "$env/installed" -nt "$root/tests/requirements-colab.txt" ]; then
    "$python" -m venv --clear "$env"
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/tests/requirements-colab.txt"
    touch "$env/installed"
fi

work=$(mktemp -d)
trap 'kill $server 2>/dev/null; rm -rf "$work"' EXIT
mkdir "$work/content" "$work/server"
cp "$root"/notebooks/*.ipynb "$work/content"
"$env/bin/python" "$root/data/phantoms.py" --folder "$work/phantoms" --train 5 --test 2
(cd "$work/phantoms" && "$env/bin/python" -m zipfile -c "$work/server/data.zip" two all)
"$env/bin/python" -u -m http.server --bind 127.0.0.1 --directory "$work/server" 0 > "$work/server.log" 2>&1 & server=$!
until port=$(grep -oE 'port [0-9]+' "$work/server.log"); do sleep 0.2; done

export COVID_XRAY_URL="http://127.0.0.1:${port#port }/data.zip" COVID_CHESTXRAY_URL="http://127.0.0.1:${port#port }"
export VGG16_WEIGHTS=random NUM_EPOCHS=2 VIEWS_PER_IMAGE=2
unset COVID_XRAY_DATA COVID_XRAY_OUTPUT
cd "$work/content"
for name in Binary Multi; do
    "$env/bin/python" -m nbconvert --log-level WARN --to notebook --execute --ExecutePreprocessor.timeout=-1 \
        --ExecutePreprocessor.kernel_name=python3 --output-dir "$work" "Covid19_GradientCrescent_$name.ipynb"
done
"$env/bin/python" - <<'P'
import json
for name, cases in (("binary", 1), ("multi", 4)):
    results = json.load(open(f"output/{name}.json"))
    counts = {key: case["test"]["n"] for key, case in results["cases"].items()}
    print(name, results["versions"], results["dataset"], counts)
    assert len(counts) == cases or name == "multi" and len(counts) >= 2
P
echo "2 passed, 0 failed"
