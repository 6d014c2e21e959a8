#!/usr/bin/env bash
# Runs a program with the null driver.
#
#   CUDA_PATH=TOOLKIT benches/null-cuda/run.sh DIR COMMAND..
#
# DIR receives kernels and log (README.md). TOOLKIT has include/ and lib64/ or lib/ with libnvrtc.
set -euo pipefail
dir=${1:?usage: CUDA_PATH=TOOLKIT run.sh DIR COMMAND..}
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
if [ ! "$dir/libcuda.so.1" -nt "$here/driver.c" ] || [ ! "$dir/libnvrtc.so" -nt "$here/nvrtc.c" ]; then
    gcc -O2 -shared -fPIC -o "$dir/libcuda.so.1" "$here/driver.c" -ldl
    gcc -O2 -shared -fPIC -o "$dir/libnvrtc.so" "$here/nvrtc.c" -ldl
    ln -sf libcuda.so.1 "$dir/libcuda.so"
fi
export CUDA_PATH NULL_CUDA_DIR=$dir NULL_CUDA_SOURCE=$here
export LD_LIBRARY_PATH=$dir:$CUDA_PATH/lib64:$CUDA_PATH/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$@"
