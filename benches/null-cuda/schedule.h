// Runs the threads of a cube until they have ended: each goes on alone, warps come together for shuffles, the cube at barriers.

static void fail(const char *what) {
    fprintf(stderr, "null driver: %s in cube %u,%u,%u\n", what, cube[0], cube[1], cube[2]);
    abort();
}

static float element(const uint32_t *fragment, int i, int bfloat) {
    uint32_t bits = fragment[i / 2] >> 16 * (i % 2) & 0xffff;
    return bfloat ? bfloat_of(bits) : half_of(bits);
}

static void multiply(struct Thread *warp) {
    uint32_t m = warp->m, n = warp->n, k = warp->k, of_a = m * k / 32, of_b = k * n / 32, of_c = m * n / 32;
    for (uint32_t row = 0; row < m; row++)
        for (uint32_t column = 0; column < n; column++) {
            uint32_t at = row * n + column;
            float sum = float_of(warp[at / of_c].c_fragment[at % of_c]);
            for (uint32_t i = 0; i < k; i++) {
                uint32_t a = row * k + i, b = i * n + column;
                sum += element(warp[a / of_a].a_fragment, a % of_a, warp->bfloat) * element(warp[b / of_b].b_fragment, b % of_b, warp->bfloat);
            }
            // No thread reads an element of C of another.
            warp[at / of_c].c_fragment[at % of_c] = bits_of(sum);
        }
}

// One step of a warp whose running threads have all stopped for it.
static void together(struct Thread *warp, int threads) {
    uint32_t running = 0, kind = 0, first = 1;
    for (int i = 0; i < threads; i++)
        if (warp[i].stopped != ENDED) {
            running |= 1u << i;
            if (!first && warp[i].kind != (int)kind) fail("threads of a warp do different things together");
            kind = warp[i].kind, first = 0;
        }
    if (kind == MULTIPLY) {
        if (running != ~0u) fail("a product of a part of a warp");
        return multiply(warp);
    }
    uint32_t all = 0;
    first = 1;
    for (int i = 0; i < threads; i++) {
        struct Thread *t = &warp[i];
        if (t->stopped == ENDED) continue;
        uint32_t x = t->in;
        if (kind == VOTE) all |= (x != 0) << i;
        else if (first) all = x;
        else if (kind == REDUCE_ADD || kind == REDUCE_ADD_S) all += x;
        else if (kind == REDUCE_AND) all &= x;
        else if (kind == REDUCE_OR) all |= x;
        else if (kind == REDUCE_XOR) all ^= x;
        else if (kind == REDUCE_MIN_U) all = x < all ? x : all;
        else if (kind == REDUCE_MAX_U) all = x > all ? x : all;
        else if (kind == REDUCE_MIN_S) all = (int32_t)x < (int32_t)all ? x : all;
        else if (kind == REDUCE_MAX_S) all = (int32_t)x > (int32_t)all ? x : all;
        first = 0;
    }
    for (int i = 0; i < threads; i++) {
        struct Thread *t = &warp[i];
        if (t->stopped == ENDED) continue;
        t->running = running, t->out = all;
        if (kind < SHUFFLE_BFLY || kind > SHUFFLE_DOWN) continue;
        int segment = t->c >> 8 & 31, clamp = t->c & 31, most = (i & segment) | (clamp & ~segment), least = i & segment, from;
        switch (kind) {
        case SHUFFLE_BFLY: from = i ^ (t->b & 31), t->valid = from <= most; break;
        case SHUFFLE_IDX: from = least | (t->b & 31 & ~segment), t->valid = from <= most; break;
        case SHUFFLE_UP: from = i - (int)(t->b & 31), t->valid = from >= most; break;
        default: from = i + (int)(t->b & 31), t->valid = from <= most;
        }
        if (!t->valid) from = i;
        if (!(running >> from & 1)) fail("a shuffle from a thread that has ended");
        t->out = warp[from].in;
    }
}

static void run_cube(struct Thread *threads, int count, void **arguments) {
    for (int i = 0; i < count; i++) {
        memset(&threads[i], 0, sizeof *threads);
        threads[i].linear = i;
        threads[i].tid[0] = i % block[0], threads[i].tid[1] = i / block[0] % block[1], threads[i].tid[2] = i / block[0] / block[1];
    }
    for (int ended = 0; ended < count;) {
        ended = 0;
        int waiting = 0;
        for (int first = 0; first < count; first += 32) {
            struct Thread *warp = &threads[first];
            int size = count - first < 32 ? count - first : 32, stopped;
            do {
                stopped = 0;
                int at_barrier = 0;
                for (int i = 0; i < size; i++) {
                    if (warp[i].stopped != ENDED || !warp[i].pc) warp[i].stopped = advance(&warp[i], arguments);
                    if (warp[i].stopped == ENDED) warp[i].pc = -1;
                    stopped += warp[i].stopped == WARP, at_barrier += warp[i].stopped == BARRIER;
                }
                if (stopped && at_barrier) fail("some threads of a warp are at a barrier, others at a shuffle");
                if (stopped) together(warp, size);
            } while (stopped);
            for (int i = 0; i < size; i++) ended += warp[i].stopped == ENDED, waiting += warp[i].stopped == BARRIER;
        }
        if (waiting && ended) fail("threads that have ended are missing at a barrier");
    }
}

void run(const uint32_t *cubes, const uint32_t *units, uint64_t shared, void **arguments) {
    memcpy(grid, cubes, sizeof grid), memcpy(block, units, sizeof block);
    shared_base = shared;
    int count = block[0] * block[1] * block[2];
    struct Thread *threads = aligned_alloc(64, (count * sizeof *threads + 63) / 64 * 64);
    for (cube[2] = 0; cube[2] < grid[2]; cube[2]++)
        for (cube[1] = 0; cube[1] < grid[1]; cube[1]++)
            for (cube[0] = 0; cube[0] < grid[0]; cube[0]++) run_cube(threads, count, arguments);
    free(threads);
}
