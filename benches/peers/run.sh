#!/usr/bin/env bash
# The same model on emberlm, llama.cpp, candle and transformers + bitsandbytes, one after the other, and one table of all.
#   benches/peers/run.sh              after benches/peers/setup.sh; takes about twenty minutes on two cores
#   T="1 2" R=5 ENGINES="ember llamacpp candle transformers" benches/peers/run.sh
# Run it on a quiet machine; only ratios within one run mean anything.
set -euo pipefail
cd "$(dirname "$0")"
T=${T:-1 2}; R=${R:-5}; ENGINES=${ENGINES:-ember llamacpp candle transformers}
M=models; OUT=out
if [ -z "${EMBER:-}" ]; then
    EMBER=../../target/release/ember
    case " $ENGINES " in *" ember "*) (cd ../.. && cargo build --release --quiet) ;; esac
fi
rm -rf $OUT; mkdir -p $OUT

ember() { # name threads flags..
    local name=$1 t=$2; shift 2
    $EMBER bench -n 64 -t "$t" -r "$R" --json "$@" > "$OUT/ember-$name-t$t.json" 2> /dev/null
}
for t in $T; do
    for engine in $ENGINES; do
        echo "$engine, $t threads" >&2
        case $engine in
        ember)
            ember nf4-dq "$t" -m $M/bench-1b-hf --quant nf4-dq
            ember nf4-dq-mapped "$t" -m $M/bench-1b-hf-nf4
            ember nf4-dq-f32act-bf16head "$t" -m $M/bench-1b-hf-nf4 --activations f32 --quant-head none -p 128
            ember int8 "$t" -m $M/bench-1b-hf --quant int8
            ember bf16 "$t" -m $M/bench-1b-hf -p 128 ;;
        llamacpp)
            for q in Q4_0 Q8_0 f16; do
                p=128,512; [ $q = f16 ] && p=128
                llama.cpp/build/bin/llama-bench -m $M/bench-1b-$q.gguf -p $p -n 64 -t "$t" -r "$R" -o json \
                    > "$OUT/llamacpp-$q-t$t.json" 2> /dev/null &
                pid=$!; peak=0
                while kill -0 $pid 2> /dev/null; do
                    peak=$(awk '/VmHWM/ {print $2}' /proc/$pid/status 2> /dev/null || echo "$peak"); sleep 0.2
                    [ -n "$peak" ] && echo "$peak" > "$OUT/llamacpp-$q-t$t.kb"
                done
                wait $pid
            done ;;
        candle)
            RAYON_NUM_THREADS=$t PP=128 candle/target/release/candle-bench $M/bench-1b-Q8_0.gguf 3 > "$OUT/candle-Q8_0-t$t.txt" ;;
        transformers)
            OMP_NUM_THREADS=$t PP=128 venv/bin/python bench_hf.py nf4pre "$t" 3 > "$OUT/transformers-nf4-dq-t$t.txt" 2> /dev/null ;;
        esac
    done
done
python3 table.py $OUT
