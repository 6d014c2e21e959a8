// libnvrtc.so between the program and the real NVRTC: appends `compile MS` to $NULL_CUDA_DIR/log, and keeps what NVRTC refuses, with its
// message, as refused-HASH.cu.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int Result;

static void *real(const char *name) {
    static void *library;
    const char *names[] = {"libnvrtc.so.13", "libnvrtc.so.12"};
    for (int i = 0; !library && i < 2; i++) library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    void *found = library ? dlsym(library, name) : NULL;
    if (!found) fprintf(stderr, "null driver: no %s\n", name), abort();
    return found;
}

#define FORWARD(name, declared, given) \
    Result name declared { return ((Result (*) declared)real(#name))given; }

FORWARD(nvrtcDestroyProgram, (void **program), (program))
FORWARD(nvrtcGetPTXSize, (void *program, size_t *size), (program, size))
FORWARD(nvrtcGetPTX, (void *program, char *ptx), (program, ptx))
FORWARD(nvrtcGetProgramLogSize, (void *program, size_t *size), (program, size))
FORWARD(nvrtcGetProgramLog, (void *program, char *log), (program, log))
FORWARD(nvrtcVersion, (int *major, int *minor), (major, minor))

const char *nvrtcGetErrorString(Result error) { return ((const char *(*)(Result))real("nvrtcGetErrorString"))(error); }

// CubeCL compiles a program as soon as it has made it.
static char *latest;

Result nvrtcCreateProgram(void **program, const char *source, const char *name, int count, const char *const *headers, const char *const *names) {
    free(latest);
    latest = strdup(source);
    return ((Result (*)(void **, const char *, const char *, int, const char *const *, const char *const *))real("nvrtcCreateProgram"))(
        program, source, name, count, headers, names);
}

Result nvrtcCompileProgram(void *program, int count, const char *const *options) {
    const char *set = getenv("NULL_CUDA_DIR"), *folder = set ? set : ".";
    struct timespec start, end;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    Result result = ((Result (*)(void *, int, const char *const *))real("nvrtcCompileProgram"))(program, count, options);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    char path[1024];
    snprintf(path, sizeof path, "%s/log", folder);
    FILE *file = fopen(path, "a");
    if (file) {
        double ms = (end.tv_sec - start.tv_sec) * 1e3 + (end.tv_nsec - start.tv_nsec) / 1e6;
        fprintf(file, "%s %.0f\n", result ? "refused" : "compile", ms);
        fclose(file);
    }
    if (result && latest) {
        uint32_t hash = 2166136261;
        for (const char *c = latest; *c; c++) hash = (hash ^ (unsigned char)*c) * 16777619;
        size_t size = 0;
        nvrtcGetProgramLogSize(program, &size);
        char *log = calloc(1, size + 1);
        if (log) nvrtcGetProgramLog(program, log);
        snprintf(path, sizeof path, "%s/refused-%08x.cu", folder, hash);
        file = fopen(path, "w");
        if (file) fprintf(file, "/* %s */\n%s", log ? log : "", latest), fclose(file);
        free(log);
    }
    return result;
}
