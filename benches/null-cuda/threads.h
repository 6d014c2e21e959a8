// What kernels that translate.py wrote need: registers, conversions, instructions that C has no operator for.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef union {
    uint8_t p, u8;
    int8_t s8;
    uint16_t u16;
    int16_t s16;
    _Float16 h;
    uint32_t u32;
    int32_t s32;
    float f32;
    uint64_t u64;
    int64_t s64;
    double f64;
} Register;

// Why a thread stopped.
enum { ENDED, BARRIER, WARP };

// What a warp does together.
enum {
    NOTHING, SHUFFLE_BFLY, SHUFFLE_IDX, SHUFFLE_UP, SHUFFLE_DOWN, VOTE, MULTIPLY,
    REDUCE_ADD, REDUCE_AND, REDUCE_OR, REDUCE_XOR, REDUCE_MIN_S, REDUCE_MIN_U, REDUCE_MAX_S, REDUCE_MAX_U, REDUCE_ADD_S
};

#define THREAD_STATE                                                                                                                \
    int pc, stopped, kind;                                                                                                          \
    uint32_t tid[3], linear;                                                                                                        \
    uint32_t in, b, c, out, valid, running;                                                                                         \
    uint32_t m, n, k, bfloat, a_fragment[8], b_fragment[8], c_fragment[8];                                                          \
    Register sink;

static uint32_t block[3], cube[3], grid[3];
static uint64_t shared_base;

static inline float float_of(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline double double_of(uint64_t bits) { double x; memcpy(&x, &bits, 8); return x; }
static inline uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
static inline uint16_t half_bits(float x) { _Float16 h = x; uint16_t bits; memcpy(&bits, &h, 2); return bits; }
static inline float half_of(uint32_t bits) { uint16_t low = bits; _Float16 h; memcpy(&h, &low, 2); return h; }
static inline float bfloat_of(uint32_t bits) { return float_of(bits << 16); }
static inline uint16_t bfloat_bits(float x) {
    uint32_t bits = bits_of(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static inline float saturated(float x) { return x > 0 ? x < 1 ? x : 1 : 0; }
// Good enough for what NVRTC uses it for: the whole part of an exponent.
static inline float fma_down(float a, float b, float c) {
    double exact = (double)a * b + c;
    float near = exact;
    return near > exact ? nextafterf(near, -INFINITY) : near;
}

#define TO_INTEGER(name, type, least, most)                                                                                         \
    static inline type to_##name(double x) { return x != x ? 0 : x <= least ? (type)least : x >= most ? (type)most : (type)x; }
TO_INTEGER(u8, uint8_t, 0.0, 255.0)
TO_INTEGER(s8, int8_t, -128.0, 127.0)
TO_INTEGER(u16, uint16_t, 0.0, 65535.0)
TO_INTEGER(s16, int16_t, -32768.0, 32767.0)
TO_INTEGER(u32, uint32_t, 0.0, 4294967295.0)
TO_INTEGER(s32, int32_t, -2147483648.0, 2147483647.0)
static inline uint64_t to_u64(double x) { return x != x || x <= 0 ? 0 : x >= 0x1p64 ? UINT64_MAX : (uint64_t)x; }
static inline int64_t to_s64(double x) { return x != x ? 0 : x >= 0x1p63 ? INT64_MAX : x < -0x1p63 ? INT64_MIN : (int64_t)x; }

static inline uint32_t extract_u32(uint32_t a, uint32_t at, uint32_t count) {
    at &= 255, count &= 255;
    return at > 31 ? 0 : (uint32_t)((uint64_t)a >> at & (count > 31 ? ~0u : (1u << count) - 1));
}
static inline int32_t extract_s32(int32_t a, uint32_t at, uint32_t count) {
    at &= 255, count &= 255;
    if (!count) return 0;
    uint32_t top = at + count - 1 > 31 ? 31 : at + count - 1;
    int64_t wide = (int64_t)a << (63 - top) >> (63 - top);
    return at > 31 ? (int32_t)(wide >> 63) : (int32_t)(wide >> at);
}
static inline uint64_t insert(uint64_t a, uint64_t b, uint32_t at, uint32_t count) {
    uint64_t mask = (count > 63 ? ~0ull : (1ull << count) - 1) << at;
    return at > 63 ? b : (b & ~mask) | (a << at & mask);
}
static inline uint32_t permute(uint32_t a, uint32_t b, uint32_t choice) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t nibble = choice >> 4 * i & 15, byte = bytes >> 8 * (nibble & 7) & 255;
        if (nibble & 8) byte = byte & 128 ? 255 : 0;
        out |= byte << 8 * i;
    }
    return out;
}
static inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
    uint32_t out = 0;
    for (int i = 0; i < 8; i++)
        if (table >> i & 1) out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return out;
}
