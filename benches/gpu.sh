#!/usr/bin/env bash
# Everything that is to be known of a GPU, from built binaries: no Rust and no network are needed, and it takes under eight minutes.
#
#   benches/gpu.sh EMBER [DEVICE..]
#
# EMBER is the program, built with the features of the devices; DEVICE is cuda[:N] or wgpu[:N] (default: cuda and wgpu, as far as
# they start). Set EMBERLM_SUITE_CUDA and EMBERLM_SUITE_WGPU to the test binaries of tests/cuda.rs and tests/wgpu.rs
# (target/release/deps/cuda-*) to run the goldens; run it in the root of the repository then. CUDA needs the driver, libnvrtc and
# the toolkit's headers: of CUDA_PATH, of the usual folders, or of pip's packages. Results go to $OUT (default: ./gpu-results): JSON, logs,
# table.txt. Where files have to be carried: stripped, the program with CUDA is 43 MB, with CUDA and Vulkan 55 MB, and the test binary
# 33 MB; 14, 18 and 9 MB with gzip.
set -uo pipefail
# Decimal points, whatever the machine's language.
export LC_ALL=C

ember=${1:?usage: benches/gpu.sh EMBER [DEVICE..]}
shift
devices=("$@")
[ ${#devices[@]} -gt 0 ] || devices=(cuda wgpu)
out=${OUT:-gpu-results}
mkdir -p "$out"
deadline=$((SECONDS + ${SECONDS_ALLOWED:-460}))

# Runs a command with what is left of the time, at most $1 seconds.
within() {
    local most=$1 left=$((deadline - SECONDS))
    shift
    [ "$left" -gt 5 ] || { echo "no time left for: $*" >&2; return 124; }
    timeout -k 5 "$((left < most ? left : most))" "$@"
}

# left_out CODE LABEL LOG: why a measurement has no result.
left_out() {
    case $1 in 124 | 137) echo "$2: stopped, its time was over" ;; *) echo "$2: $(tail -n 1 "$3")" ;; esac
}

# field NAME < one JSON object: the first number or string of that name.
field() { sed -nE "s/.*\"$1\":(\"([^\"]*)\"|([0-9.eE+-]+)).*/\2\3/p" | head -n 1; }

# One measurement a line.
results() { sed -E 's/.*"results":\[(.*)\],"peak_rss_bytes".*/\1/; s/\},\{/}\n{/g' "$1"; }

# The first pair of read_gb_per_second, [[1,GB/s]].
ceiling() { sed -nE 's/.*"read_gb_per_second":\[\[[0-9]+,([0-9.eE+-]+)\].*/\1/p' "$1"; }

table() {
    printf '%-8s %-11s %-7s %6s %12s %9s %8s %9s %10s\n' device shape test steps tokens/s GB/s '% read' launches read-backs
    local file device shape
    for file in "$out"/bench-*.json; do
        [ -s "$file" ] || continue
        IFS=- read -r _ device shape <<<"$(basename "$file" .json | tr '_' '-')"
        results "$file" | while read -r line; do
            awk -v device="$device" -v shape="$shape" -v test="$(field test <<<"$line")" \
                -v steps="$(field mean_steps <<<"$line")" -v speed="$(field tokens_per_second <<<"$line")" \
                -v gb="$(field gb_per_second <<<"$line")" -v read="$(ceiling "$file")" \
                -v launches="$(field launches <<<"$line")" -v backs="$(field read_backs <<<"$line")" '
                function known(format, x) { return x == "" ? "-" : sprintf(format, x) }
                BEGIN {
                    share = read + 0 == 0 ? "" : 100 * gb / read
                    printf("%-8s %-11s %-7s %6s %12.1f %9.1f %8s %9s %10s\n", device, shape, test, known("%.2f", steps),
                        speed, gb, known("%.0f", share), known("%.0f", launches), known("%.0f", backs))
                }'
        done
    done
}

# Finds the toolkit for kernels. pip has it in one folder (CUDA 13), or one for each part, which are joined in $out/cuda.
find_cuda() {
    local place='' site part
    for place in "${CUDA_PATH:-}" /usr/local/cuda /usr/local/cuda-* /opt/cuda ''; do
        [ -n "$place" ] && [ -f "$place/include/cuda_runtime.h" ] && break
    done
    site=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null)/nvidia
    if [ -z "$place" ] && [ -d "$site" ]; then
        place=$(cd "$out" && pwd)/cuda
        mkdir -p "$place/include" "$place/lib64"
        for part in "$site"/*; do
            ln -sfn "$part"/include/* "$place/include/" 2>/dev/null
            ln -sfn "$part"/lib/* "$place/lib64/" 2>/dev/null
        done
    fi
    [ -n "$place" ] || return
    export CUDA_PATH=$place
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$place/lib64:$place/lib
    # The compiler may be there as a package of pip alone.
    for part in "$site"/cuda_nvrtc/lib "$site"/cu1*/lib; do
        [ -d "$part" ] && LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$part
    done
    # Matrix instructions need headers that come with nvcc.
    [ -f "$place/include/crt/mma.h" ] || { echo "no crt/mma.h: without matrix instructions"; cuda_gpu=planes; }
    echo "CUDA: $place"
}

usual_gpu=${EMBERLM_GPU:-}
find_cuda
"$ember" doctor --device cpu | tee "$out/devices.txt"
command -v nvidia-smi >/dev/null && nvidia-smi >"$out/nvidia-smi.txt" 2>&1

for device in "${devices[@]}"; do
    name=${device/:/}
    # What CUDA's headers lack is nothing to other drivers.
    case $device in cuda*) export EMBERLM_GPU=${cuda_gpu:-$usual_gpu} ;; *) export EMBERLM_GPU=$usual_gpu ;; esac
    [ -n "$EMBERLM_GPU" ] || unset EMBERLM_GPU
    echo "== $device"
    within 150 "$ember" doctor --device "$device" >"$out/doctor-$name.txt" 2>&1
    case $? in
    0) tail -n 1 "$out/doctor-$name.txt" ;;
    # Kernels are compiled one by one. Each measurement tests the device too, at less length.
    124 | 137) echo "doctor was stopped before it was done" ;;
    *) tail -n 3 "$out/doctor-$name.txt" && continue ;;
    esac
    kind=${device%%:*}
    suite=EMBERLM_SUITE_$(tr "[:lower:]" "[:upper:]" <<<"$kind")
    if [ -n "${!suite:-}" ] && [ -d tests/fixtures ]; then
        within 120 "${!suite}" golden --test-threads 4 >"$out/goldens-$name.txt" 2>&1
        grep -E '^test result|FAILED' "$out/goldens-$name.txt" || tail -n 2 "$out/goldens-$name.txt"
    fi
    # bench LABEL SHAPE FLAGS..
    bench() {
        local label=$1 result=$out/bench-${name}_$1
        shift
        within 90 "$ember" bench --device "$device" -p 512 -n 64 -r 3 --json --shape "$@" >"$result.json" 2>"$result.log" ||
            { left_out $? "$label" "$result.log"; rm -f "$result.json"; }
    }
    # The storages that the models are published in.
    lean=(lean-8b --quant nf4-dq --quant-head nf4-dq)
    bench bench-1b bench-1b --quant nf4-dq
    bench lean-8b "${lean[@]}"
    bench nano-3b nano-3b
    bench sky-lite sky-lite --quant nf4 --quant-head int8
    bench crest-11b crest-11b --quant nf4 --quant-head int8 --force-steps 1,2,3,4
    # Prompts go through matrix instructions with activations of halves; F32 is the default.
    bench lean-8b-f16 "${lean[@]}" --activations f16
done

table | tee "$out/table.txt"
