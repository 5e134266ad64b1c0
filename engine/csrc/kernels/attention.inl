// Attention, head by head. Included where Entry, epilogue.inl and MOST_OUTPUTS, the widest block of outputs
// of a product, are defined; whoever includes it defines `multiply`, and KEYS, to a multiple of which it
// wants keys padded.
//
// To the kernels queries are what pixels are to a convolution, so that they are read where they lie, and keys
// are its weights. The scores of QUERIES queries at a time are all that is kept; their softmax is what the
// second product reads, whose weights are the values.

// Entries of its run that one step of a product takes.
constexpr int64_t STEP = sizeof(float) / sizeof(Entry);
constexpr int64_t QUERIES = 32;
// Rows of scores are padded to this.
constexpr int64_t SCORES = 32;
alignas(64) constexpr float NO_BIAS[MOST_OUTPUTS] = {};

// out (pixels, outputs) = in (pixels, run) times weight (run, outputs), which lies in blocks as wide as
// width_of says, each as pack_run packs.
struct Product {
    const Entry* in;
    int64_t step;  // entries from pixel to pixel
    int64_t pixels, run;
    const Entry* weight;
    int64_t outputs;  // a multiple of CHANNEL_BLOCK
    float* out;
    int64_t out_step;
};
inline void multiply(const Product& product);

inline int64_t up_to(int64_t count, int64_t whole) {
    return (count + whole - 1) / whole * whole;
}

// Outputs of the next block, of those that are left.
inline int64_t width_of(int64_t left) {
    return left < MOST_OUTPUTS ? CHANNEL_BLOCK : MOST_OUTPUTS;
}

// What a thread needs beside the maps.
struct AttentionRoom {
    int64_t run;            // entries of queries and keys
    int64_t keys, outputs;  // padded, as outputs of the two products
    int64_t scores_step;
    float* scores;   // (QUERIES, scores_step)
    Entry* weights;  // the same, as entries
    float* sums;     // (QUERIES, outputs)
    Entry* key;      // weights (run, keys)
    Entry* value;    // weights (all keys, outputs)
    size_t bytes = 0;

    AttentionRoom(void* memory, int64_t pixels, int64_t size)
        : run(up_to(size, STEP)),
          keys(up_to(pixels, CHANNEL_BLOCK)),
          outputs(up_to(size, CHANNEL_BLOCK)),
          scores_step(up_to(pixels, SCORES)) {
        take(memory, scores, QUERIES * scores_step);
        take(memory, weights, QUERIES * scores_step);
        take(memory, sums, QUERIES * outputs);
        take(memory, key, run * keys);
        take(memory, value, scores_step * outputs);
    }

  private:
    template <class Number>
    void take(void* memory, Number*& numbers, int64_t count) {
        numbers = memory ? reinterpret_cast<Number*>(static_cast<std::byte*>(memory) + bytes) : nullptr;
        bytes += up_to(count * static_cast<int64_t>(sizeof(Number)), 64);
    }
};

size_t attention_bytes(int64_t pixels, int64_t size) {
    return AttentionRoom(nullptr, pixels, size).bytes;
}

// Where the entries of pixel `index` begin, of all row by row.
inline const Entry* pixel_at(const Attention& a, const Entry* in, int64_t index) {
    return in + index / a.pixels * a.in_row_step + index % a.pixels * a.in_step;
}

// Every key is a column of weights.
inline void pack_keys(const Attention& a, const Entry* in, const AttentionRoom& room) {
    const int64_t count = a.rows * a.pixels;
    __builtin_memset(room.key, 0, room.run * room.keys * sizeof(Entry));
    for (int64_t first = 0, width; first < count; first += width) {
        width = width_of(room.keys - first);
        Entry* block = room.key + first * room.run;
        const int64_t some = count - first < width ? count - first : width;
        for (int64_t c = 0; c < some; ++c) {
            const Entry* from = pixel_at(a, in, first + c);
            int64_t j = 0;
            for (; j + STEP <= a.size; j += STEP)
                __builtin_memcpy(block + j * width + c * STEP, from + j, STEP * sizeof(Entry));
            if (j < a.size) block[j * width + c * STEP] = from[j];
        }
    }
}

// Every value is a row of weights; zeros where there are fewer than `rows`.
inline void pack_values(const Attention& a, const Entry* in, int64_t rows, const AttentionRoom& room) {
    const int64_t count = a.rows * a.pixels;
    __builtin_memset(room.value, 0, rows * room.outputs * sizeof(Entry));
    for (int64_t first = 0, width; first < a.size; first += width) {
        width = width_of(room.outputs - first);
        Entry* block = room.value + first * rows;
        const int64_t some = a.size - first < width ? a.size - first : width;
        for (int64_t n = 0; n < count; ++n) {
            const Entry* from = pixel_at(a, in, n) + first;
            Entry* to = block + n / STEP * STEP * width + n % STEP;
            for (int64_t c = 0; c < some; ++c) to[c * STEP] = from[c];
        }
    }
}

// The largest of all lanes; what is no number is none.
inline float largest_lane(const Vector& v) {
    float top = v[0];
    for (int64_t i = 1; i < LANES; ++i) top = v[i] > top ? v[i] : top;
    return top;
}

// The scores of a query become e^(scale (score - largest)); returns their sum.
inline float soften(float* scores, Entry* weights, int64_t count, int64_t padded, float scale) {
    for (int64_t n = count; n < padded; ++n) scores[n] = -__builtin_inff();
    Vector tops = load(scores), sums{};
    for (int64_t n = LANES; n < padded; n += LANES) {
        const Vector score = load(scores + n);
        tops = score > tops ? score : tops;
    }
    const float top = largest_lane(tops);
    for (int64_t n = 0; n < padded; n += LANES) {
        const Vector power = exponential((load(scores + n) - top) * scale);
        store_entries(weights + n, power);
        sums += power;
    }
    return total(sums);
}

// Sums of values become the entries of a pixel.
inline void write_mean(const float* sums, float share, int64_t size, Entry* to) {
    int64_t j = 0;
    for (; j + LANES <= size; j += LANES) store_entries(to + j, load(sums + j) * share);
    for (; j < size; ++j) to[j] = to_entry(sums[j] * share);
}

void attention(const Attention& a) {
    const int64_t count = a.rows * a.pixels, rows = up_to(count, KEYS);
    const AttentionRoom room(a.scratch, count, a.size);
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(a.size));
    for (int64_t head = 0; head < a.heads; ++head) {
        const Entry* query = static_cast<const Entry*>(a.in) + head * a.size;
        const Entry *key = query + a.heads * a.size, *value = key + a.heads * a.size;
        pack_keys(a, key, room);
        pack_values(a, value, rows, room);
        for (int64_t first = a.begin, some; first < a.end; first += some) {
            const int64_t y = first / a.pixels, x = first % a.pixels;
            some = a.end - first < a.pixels - x ? a.end - first : a.pixels - x;
            some = some < QUERIES ? some : QUERIES;
            multiply({pixel_at(a, query, first), a.in_step, some, room.run, room.key, room.keys, room.scores,
                      room.scores_step});
            float sums[QUERIES];
            for (int64_t q = 0; q < some; ++q)
                sums[q] = soften(room.scores + q * room.scores_step, room.weights + q * room.scores_step,
                                 count, room.scores_step, scale);
            multiply({room.weights, room.scores_step, some, rows, room.value, room.outputs, room.sums,
                      room.outputs});
            for (int64_t q = 0; q < some; ++q) {
                Entry* to = static_cast<Entry*>(a.out) + y * a.out_row_step + (x + q) * a.out_step;
                write_mean(room.sums + q * room.outputs, 1.0f / sums[q], a.size, to + head * a.size);
                for (int64_t c = a.heads * a.size; head == 0 && c < a.out_step; ++c) to[c] = Entry{};
            }
        }
    }
}
