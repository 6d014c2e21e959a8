#!/usr/bin/env bash
# Installs and builds the peers below this folder: a Python environment (torch, transformers, bitsandbytes, gguf), llama.cpp as
# shipped in the llama-cpp-python source package (cmake and a C++ compiler needed), candle; then writes the model of shape bench-1b.
set -euo pipefail
cd "$(dirname "$0")"
if [ ! -d venv ]; then
    python3 -m venv venv
    venv/bin/pip install -q torch==2.15.0 transformers==5.23.0 bitsandbytes==0.50.2 accelerate gguf numpy safetensors psutil ninja
fi
if [ ! -d llama.cpp ]; then
    mkdir -p sdist
    python3 -m pip download -q --no-deps --no-binary llama-cpp-python -d sdist llama-cpp-python==0.3.36
    tar xzf sdist/llama_cpp_python-*.tar.gz -C sdist
    ln -s sdist/llama_cpp_python-0.3.36/vendor/llama.cpp llama.cpp
fi
if [ ! -x llama.cpp/build/bin/llama-bench ]; then
    cmake -S llama.cpp -B llama.cpp/build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_UI=OFF -DBUILD_SHARED_LIBS=OFF
    cmake --build llama.cpp/build -j"$(nproc)" --target llama-bench llama-quantize
fi
[ -x candle/target/release/candle-bench ] || (cd candle && cargo build --release)
[ -f models/bench-1b-f16.gguf ] || venv/bin/python gen_model.py
for q in Q4_0 Q8_0; do
    [ -f models/bench-1b-$q.gguf ] || llama.cpp/build/bin/llama-quantize models/bench-1b-f16.gguf models/bench-1b-$q.gguf $q 2
done
[ -d models/bench-1b-hf-nf4 ] || venv/bin/python bench_hf.py nf4save 2
