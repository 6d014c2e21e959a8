// A CUDA driver without a card: it takes every call that CubeCL makes, keeps the kernels, logs the launches and can run them, slowly.
// README.md says how it is used.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int Result;
typedef uint64_t Device_ptr;

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };

typedef void Run(const uint32_t *cubes, const uint32_t *units, uint64_t shared, void **arguments);

struct Function {
    char name[256]; // NAME-HASH
    Run *run;       // once it has been translated
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static const char *folder(void) {
    const char *set = getenv("NULL_CUDA_DIR");
    return set ? set : ".";
}

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...) {
    static FILE *log;
    static int quiet;
    if (quiet) return;
    pthread_mutex_lock(&lock);
    const char *set = getenv("NULL_CUDA_LOG");
    quiet = set && !strcmp(set, "0");
    if (!log) {
        char path[1024];
        snprintf(path, sizeof path, "%s/log", folder());
        log = fopen(path, "a");
        if (log) setlinebuf(log);
    }
    if (log) {
        va_list arguments;
        va_start(arguments, format);
        vfprintf(log, format, arguments);
        va_end(arguments);
        fputc('\n', log);
    }
    pthread_mutex_unlock(&lock);
}

// Whether launches are run and copies made: until more than NULL_CUDA_EXECUTE bytes (default: 0) went to the device. So a self-test
// computes, and what comes after the weights of a large model does not.

static int executes(size_t bytes) {
    static size_t copied;
    const char *most = getenv("NULL_CUDA_EXECUTE");
    copied += bytes;
    return most && copied <= strtoull(most, NULL, 10);
}

// The device.

Result cuInit(unsigned flags) { return SUCCESS; }
Result cuDriverGetVersion(int *version) { return *version = 12090, SUCCESS; }
Result cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
Result cuDeviceGet(int *device, int index) { return *device = index, index == 0 ? SUCCESS : 101; }
Result cuDeviceGetName(char *name, int length, int device) { return snprintf(name, length, "null device"), SUCCESS; }
Result cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = 141ull << 30, SUCCESS; }

Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    const char *set = getenv("NULL_CUDA_ARCH");
    int arch = set ? atoi(set) : 90;
    switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;   // threads per block; x, y
    case 4: *value = 64; break;                     // z
    case 5: *value = 2147483647; break;             // grid x
    case 6: case 7: *value = 65535; break;          // y, z
    case 8: *value = 49152; break;                  // static shared memory per block
    case 10: *value = 32; break;                    // warp
    case 12: case 82: *value = 65536; break;        // registers per block, per multiprocessor
    case 16: *value = arch == 90 ? 132 : 108; break; // multiprocessors
    case 39: *value = arch == 89 ? 1536 : 2048; break;
    case 75: *value = arch / 10; break;
    case 76: *value = arch % 10; break;
    case 81: *value = arch == 90 ? 233472 : arch == 89 ? 102400 : 167936; break; // shared memory per multiprocessor
    case 97: *value = arch == 90 ? 232448 : arch == 89 ? 101376 : 166912; break; // and per block
    case 106: *value = arch == 89 ? 24 : 32; break; // blocks per multiprocessor
    case 115: *value = 1; break;                    // memory pools
    default: *value = 0;
    }
    return SUCCESS;
}

// NVRTC asks for a table of the driver's own, and does without it.
Result cuGetExportTable(const void **table, const void *id) { return *table = NULL, NOT_FOUND; }

Result cuGetErrorName(Result error, const char **text) { return *text = "CUDA_ERROR", SUCCESS; }
Result cuGetErrorString(Result error, const char **text) { return *text = "an error of the null driver", SUCCESS; }

// Contexts, streams, events: there is one of each, and all is done at once.

static int thing;
Result cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &thing, SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
Result cuCtxSetCurrent(void *context) { return SUCCESS; }
Result cuCtxGetCurrent(void **context) { return *context = &thing, SUCCESS; }
Result cuCtxSynchronize(void) { return SUCCESS; }
Result cuStreamCreate(void **stream, unsigned flags) { return *stream = &thing, SUCCESS; }
Result cuStreamDestroy_v2(void *stream) { return SUCCESS; }
Result cuStreamSynchronize(void *stream) { return SUCCESS; }
Result cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return SUCCESS; }
Result cuEventCreate(void **event, unsigned flags) { return *event = &thing, SUCCESS; }
Result cuEventRecord(void *event, void *stream) { return SUCCESS; }
Result cuEventQuery(void *event) { return SUCCESS; }
Result cuEventSynchronize(void *event) { return SUCCESS; }
Result cuEventDestroy_v2(void *event) { return SUCCESS; }
Result cuEventElapsedTime(float *ms, void *start, void *end) { return *ms = 1, SUCCESS; }
Result cuEventElapsedTime_v2(float *ms, void *start, void *end) { return *ms = 1, SUCCESS; }

// Memory. A page before the block holds its size.

enum { PAGE = 4096 };

static void *reserve(size_t bytes) {
    size_t all = (bytes + 2 * PAGE - 1) / PAGE * PAGE;
    char *at = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return NULL;
    *(size_t *)at = all;
    return at + PAGE;
}

static void release(void *at) {
    if (at) munmap((char *)at - PAGE, *(size_t *)((char *)at - PAGE));
}

Result cuMemAlloc_v2(Device_ptr *at, size_t bytes) {
    void *memory = reserve(bytes);
    note("alloc %zu", bytes);
    return *at = (Device_ptr)memory, memory ? SUCCESS : OUT_OF_MEMORY;
}

Result cuMemFree_v2(Device_ptr at) { return note("free"), release((void *)at), SUCCESS; }
Result cuMemAllocAsync(Device_ptr *at, size_t bytes, void *stream) { return cuMemAlloc_v2(at, bytes); }
Result cuMemFreeAsync(Device_ptr at, void *stream) { return cuMemFree_v2(at); }
Result cuMemAllocHost_v2(void **at, size_t bytes) { return (*at = reserve(bytes)) ? SUCCESS : OUT_OF_MEMORY; }
Result cuMemFreeHost(void *at) { return release(at), SUCCESS; }

// CUDA_MEMCPY2D of cuda.h.
struct Copy2D {
    size_t src_x, src_y;
    unsigned src_type;
    const void *src_host;
    Device_ptr src_device;
    void *src_array;
    size_t src_pitch, dst_x, dst_y;
    unsigned dst_type;
    void *dst_host;
    Device_ptr dst_device;
    void *dst_array;
    size_t dst_pitch, width, height;
};

Result cuMemcpy2DAsync_v2(const struct Copy2D *copy, void *stream) {
    enum { HOST = 1 };
    int to_host = copy->dst_type == HOST;
    int real = executes(to_host ? 0 : copy->width * copy->height);
    note("%s %zu", to_host ? "dtoh" : "htod", copy->width * copy->height);
    char *to = to_host ? copy->dst_host : (char *)copy->dst_device;
    const char *from = copy->src_type == HOST ? copy->src_host : (char *)copy->src_device;
    for (size_t row = 0; (real || to_host) && row < copy->height; row++) {
        if (real) memcpy(to + row * copy->dst_pitch, from + row * copy->src_pitch, copy->width);
        else memset(to + row * copy->dst_pitch, 0, copy->width);
    }
    return SUCCESS;
}

Result cuMemcpyHtoDAsync_v2(Device_ptr to, const void *from, size_t bytes, void *stream) {
    struct Copy2D copy = {.src_type = 1, .src_host = from, .dst_type = 2, .dst_device = to, .width = bytes, .height = 1};
    return cuMemcpy2DAsync_v2(&copy, stream);
}

Result cuMemcpyDtoHAsync_v2(void *to, Device_ptr from, size_t bytes, void *stream) {
    struct Copy2D copy = {.src_type = 2, .src_device = from, .dst_type = 1, .dst_host = to, .width = bytes, .height = 1};
    return cuMemcpy2DAsync_v2(&copy, stream);
}

Result cuMemcpyDtoDAsync_v2(Device_ptr to, Device_ptr from, size_t bytes, void *stream) {
    note("dtod %zu", bytes);
    if (executes(0)) memmove((void *)to, (void *)from, bytes);
    return SUCCESS;
}

// Kernels.

Result cuModuleLoadData(void **module, const void *image) {
    const char *text = image, *entry = strstr(text, ".entry ");
    if (!entry) return INVALID_VALUE;
    entry += strlen(".entry ");
    // FNV-1a.
    uint64_t hash = 0xcbf29ce484222325;
    size_t length = strlen(text);
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3;
    struct Function *function = calloc(1, sizeof *function);
    int name = strcspn(entry, "( \t\n");
    snprintf(function->name, sizeof function->name, "%.*s-%08x", name > 200 ? 200 : name, entry, (unsigned)(hash ^ hash >> 32));
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.ptx", folder(), function->name);
    FILE *file = fopen(path, "w");
    if (!file || fwrite(text, 1, length, file) != length || fclose(file)) return perror(path), NOT_FOUND;
    note("load %s", function->name);
    return *module = function, SUCCESS;
}

Result cuModuleUnload(void *module) { return SUCCESS; }
Result cuModuleGetFunction(void **function, void *module, const char *name) { return *function = module, SUCCESS; }
Result cuFuncSetAttribute(void *function, int attribute, int value) { return SUCCESS; }

// Translates a kernel to C, and compiles it unless an earlier run did.
static Run *translated(const char *name) {
    const char *source = getenv("NULL_CUDA_SOURCE");
    char path[1024], command[4096];
    snprintf(path, sizeof path, "%s/%s.so", folder(), name);
    if (access(path, F_OK)) {
        // The programs must not find the libraries that the kernels are compiled with.
        snprintf(command, sizeof command, "unset LD_LIBRARY_PATH; cd '%s' && python3 '%s/translate.py' %s.ptx >%s.c"
                 " && gcc -O1 -fno-strict-aliasing -w -shared -fPIC -I'%s' -o %s.new %s.c -lm && mv %s.new %s.so",
                 folder(), source, name, name, source, name, name, name, name);
        if (!source || system(command)) return fprintf(stderr, "null driver: %s is not translated (NULL_CUDA_SOURCE?)\n", name), NULL;
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    return library ? dlsym(library, "run") : (fprintf(stderr, "null driver: %s\n", dlerror()), NULL);
}

Result cuLaunchKernel(struct Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void *stream, void **arguments, void **extra) {
    note("launch %s %u,%u,%u %u,%u,%u %u", function->name, gx, gy, gz, bx, by, bz, shared);
    if (!executes(0)) return SUCCESS;
    // Addresses of shared memory have 32 bits.
    static char *memory;
    enum { MOST = 1 << 20 };
    if (!memory) memory = mmap(NULL, MOST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (!function->run && !(function->run = translated(function->name))) return NOT_FOUND;
    memset(memory, 0xff, MOST);
    function->run((uint32_t[]){gx, gy, gz}, (uint32_t[]){bx, by, bz}, (uint64_t)memory, arguments);
    return SUCCESS;
}
