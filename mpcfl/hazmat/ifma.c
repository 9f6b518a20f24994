/* Modular arithmetic on eight numbers at once, modulo one odd modulus, by AVX-512 IFMA.
 *
 * Numbers are in radix 2^52, one limb per 64-bit word, and limb i of eight numbers fills one
 * 512-bit vector (a lane per number). Products are Montgomery's with R = 2^(52 L) > 16 m, "almost"
 * reduced: factors below 2 m give a product below 2 m, as (4 m^2 + R m) / R < 2 m (Gueron 2002;
 * Gueron and Krasnov 2012 for this radix). Modulo m^2 a number is x0 + x1 m, both parts below 2 m,
 * and all products are of parts: 10 L^2 and 7 L^2 multiply-adds for a product and a square, where
 * limbs of m^2 would take 16 L^2 and 12 L^2. Results modulo m leave the module below m; parts of
 * results modulo m^2 may be as large as m + 1.
 *
 * A word takes at most six 52-bit summands from each of L rows and carries that are smaller, so
 * that it can't overflow while 6 L + 8 < 2^12; carries are handed on once, at the end.
 *
 * Powers choose from their window table by reading all of it, so that neither time nor addresses
 * depend on an exponent. Fixed-base tables are read at places that depend on the exponent.
 * Work memory is wiped before it is given back.
 *
 * The Python side (modular.py) reduces what comes in and checks ranges of exponents.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(MPCFL_NO_KERNEL)
#define HAVE_KERNEL 1
#else
#define HAVE_KERNEL 0
#endif

#if HAVE_KERNEL

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#define TARGET __attribute__((target("avx512f,avx512ifma,avx512dq,avx512vl,avx512bw")))
#define KERNEL static TARGET
#define INLINE static inline __attribute__((always_inline)) TARGET
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define LANES 8
#define LIMB_BITS 52
#define LIMB_MASK ((UINT64_C(1) << LIMB_BITS) - 1)
/* Rows that one sweep over the other factor takes; 8 rows and their quotient digits fill half of
 * the registers. */
#define ROWS 8
#define MAX_BITS 8192
/* R > 2^SPARE_BITS m, for the bounds of products modulo m^2. */
#define SPARE_BITS 4
#define MAX_WINDOW_BITS 16
/* Table entries are padded to whole vectors, so that they can be transposed. */
#define PADDED(n_limbs) (((n_limbs) + LANES - 1) / LANES * LANES)
#define ALIGNMENT 64
#define HUGE_PAGE (UINT64_C(1) << 21)

typedef __m512i vec;
typedef uint64_t word;

typedef struct {
    size_t parts;   /* 1: modulo m. 2: modulo m^2, numbers x0 + x1 m */
    size_t width;   /* bytes of a part in a buffer */
    size_t n_bytes; /* bytes of a number in a buffer */
    size_t n_limbs; /* limbs of a part that are used, */
    size_t padded;  /* and with those that fill whole vectors */
    size_t n_words; /* limbs of a number, padded */
    size_t stride;  /* words of eight numbers */
    word inverse;       /* -1 / m mod 2^52 */
    word *modulus;      /* m, n_limbs words */
    word *complement;   /* (1 - R) mod m, n_limbs words */
    word *radix_square; /* R^2, alike in all lanes */
    word *one;          /* R, as above */
} Ring;

INLINE vec load(const word *from) { return _mm512_load_si512((const void *)from); }
INLINE void store(word *to, vec value) { _mm512_store_si512((void *)to, value); }
INLINE vec low(vec sum, vec a, vec b) { return _mm512_madd52lo_epu64(sum, a, b); }
INLINE vec high(vec sum, vec a, vec b) { return _mm512_madd52hi_epu64(sum, a, b); }
INLINE vec everywhere(word value) { return _mm512_set1_epi64((long long)value); }

static void wipe(void *memory, size_t n_bytes)
{
    memset(memory, 0, n_bytes);
    __asm__ volatile("" : : "r"(memory) : "memory"); /* the compiler may not drop it */
}

static word *new_words(size_t count)
{
    size_t n_bytes = (count * sizeof(word) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t alignment = n_bytes < 2 * HUGE_PAGE ? ALIGNMENT : HUGE_PAGE;
    void *memory = NULL;
    if (posix_memalign(&memory, alignment, n_bytes))
        return NULL;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment == HUGE_PAGE)
        (void)madvise(memory, n_bytes, MADV_HUGEPAGE); /* only a hint */
#endif
    memset(memory, 0, n_bytes);
    return memory;
}

static void free_words(word *words, size_t count)
{
    if (words) {
        wipe(words, count * sizeof(word));
        free(words);
    }
}

/* Add `rows` rows of a * b and as many multiples of the modulus to `sum`, such that the lowest
 * `rows` words become zero modulo 2^52 and their carry is in the next; with `multiply` 0 only the
 * multiples of the modulus. How often the modulus was added is kept in `digits`, if not NULL.
 * `rows` and `multiply` are constants after inlining. */
INLINE void add_rows(const int rows, const int multiply, const Ring *ring, const word *a,
                     const word *b, word *sum, word *digits)
{
    const size_t n_limbs = ring->n_limbs;
    const word *modulus = ring->modulus;
    const vec inverse = everywhere(ring->inverse), mask = everywhere(LIMB_MASK);
    vec x[ROWS], q[ROWS], w[ROWS + 1], factor, limb;

    UNROLL for (int r = 0; r < rows; r++) x[r] = multiply ? load(a + r * LANES) : mask;
    UNROLL for (int k = 0; k <= rows; k++) w[k] = load(sum + k * LANES);

    /* Columns below `rows`: they fix the quotient digits q[r] one after the other. */
    UNROLL for (int r = 0; r < rows; r++) {
        if (multiply) {
            UNROLL for (int j = 0; j < rows - r; j++) {
                factor = load(b + j * LANES);
                w[r + j] = low(w[r + j], x[r], factor);
                w[r + j + 1] = high(w[r + j + 1], x[r], factor);
            }
        }
        q[r] = low(_mm512_setzero_si512(), w[r], inverse);
        /* The digit makes the low 52 bits of this column zero, so that its carry is known. */
        w[r + 1] = _mm512_add_epi64(w[r + 1],
                                    _mm512_srli_epi64(_mm512_add_epi64(w[r], mask), LIMB_BITS));
        UNROLL for (int j = 0; j < rows - r; j++) {
            limb = everywhere(modulus[j]);
            if (j > 0)
                w[r + j] = low(w[r + j], q[r], limb);
            w[r + j + 1] = high(w[r + j + 1], q[r], limb);
        }
    }

    if (digits) {
        UNROLL for (int r = 0; r < rows; r++) store(digits + r * LANES, q[r]);
    }

    /* From here on w[k] is column rows + k: the rest of the first `rows` limbs of b, */
    w[0] = w[rows];
    UNROLL for (int k = 1; k < rows; k++) w[k] = load(sum + (rows + k) * LANES);
    UNROLL for (int j = 1; j < rows; j++) {
        limb = everywhere(modulus[j]);
        if (multiply)
            factor = load(b + j * LANES);
        UNROLL for (int r = rows - j; r < rows; r++) {
            const int k = j + r - rows;
            if (multiply) {
                w[k] = low(w[k], x[r], factor);
                w[k + 1] = high(w[k + 1], x[r], factor);
            }
            w[k] = low(w[k], q[r], limb);
            w[k + 1] = high(w[k + 1], q[r], limb);
        }
    }
    /* and all others, one column done for each limb. */
    for (size_t j = rows; j < n_limbs; j++) {
        limb = everywhere(modulus[j]);
        w[rows] = load(sum + (j + rows) * LANES);
        if (multiply) {
            factor = load(b + j * LANES);
            UNROLL for (int r = 0; r < rows; r++) w[r] = low(w[r], x[r], factor);
        }
        UNROLL for (int r = 0; r < rows; r++) w[r] = low(w[r], q[r], limb);
        if (multiply) {
            UNROLL for (int r = 0; r < rows; r++) w[r + 1] = high(w[r + 1], x[r], factor);
        }
        UNROLL for (int r = 0; r < rows; r++) w[r + 1] = high(w[r + 1], q[r], limb);
        store(sum + j * LANES, w[0]);
        UNROLL for (int r = 0; r < rows; r++) w[r] = w[r + 1];
    }
    UNROLL for (int r = 0; r < rows; r++) store(sum + (n_limbs + r) * LANES, w[r]);
}

/* Add a * b (if `multiply`) and what makes the lower half of `sum` zero; sum has 2 L vectors. */
INLINE void add_all_rows(const int multiply, const Ring *ring, const word *a, const word *b,
                         word *sum, word *digits)
{
    const size_t n_limbs = ring->n_limbs;
    size_t i = 0;
#define ADD(rows)                                                                                 \
    do {                                                                                          \
        add_rows(rows, multiply, ring, a + i * LANES, b, sum + i * LANES,                         \
                 digits ? digits + i * LANES : NULL);                                             \
        i += rows;                                                                                \
    } while (0)
    while (i + ROWS <= n_limbs)
        ADD(ROWS);
    if (n_limbs - i >= 4)
        ADD(4);
    if (n_limbs - i >= 2)
        ADD(2);
    if (n_limbs - i >= 1)
        ADD(1);
#undef ADD
}

/* Two functions, as the two constants make them large. */
KERNEL void add_and_reduce(const Ring *ring, const word *a, const word *b, word *sum, word *digits)
{
    add_all_rows(1, ring, a, b, sum, digits);
}

KERNEL void only_reduce(const Ring *ring, word *sum, word *digits)
{
    add_all_rows(0, ring, sum, sum, sum, digits);
}

/* Hand carries on, so that every word is below 2^52 again. */
INLINE void carry_over(const Ring *ring, word *out, const word *sum)
{
    const vec mask = everywhere(LIMB_MASK);
    vec carry = _mm512_setzero_si512();
    for (size_t k = 0; k < ring->n_limbs; k++) {
        carry = _mm512_add_epi64(carry, load(sum + k * LANES));
        store(out + k * LANES, _mm512_and_si512(carry, mask));
        carry = _mm512_srli_epi64(carry, LIMB_BITS);
    }
}

/* Add x times the limbs of b from number `j` on to `sum`, whose first column is x[0] b[0]'s. */
INLINE void sweep(const int rows, size_t n_limbs, size_t j, const vec x[ROWS], const word *b,
                  word *sum)
{
    vec w[ROWS + 1], factor;
    UNROLL for (int r = 0; r < rows; r++) w[r] = load(sum + (j + r) * LANES);
    for (; j < n_limbs; j++) {
        factor = load(b + j * LANES);
        w[rows] = load(sum + (j + rows) * LANES);
        UNROLL for (int r = 0; r < rows; r++) w[r] = low(w[r], x[r], factor);
        UNROLL for (int r = 0; r < rows; r++) w[r + 1] = high(w[r + 1], x[r], factor);
        store(sum + j * LANES, w[0]);
        UNROLL for (int r = 0; r < rows; r++) w[r] = w[r + 1];
    }
    UNROLL for (int r = 0; r < rows; r++) store(sum + (n_limbs + r) * LANES, w[r]);
}

/* Add `rows` rows of a * b. */
INLINE void add_product_rows(const int rows, size_t n_limbs, const word *a, const word *b,
                             word *sum)
{
    vec x[ROWS];
    UNROLL for (int r = 0; r < rows; r++) x[r] = load(a + r * LANES);
    sweep(rows, n_limbs, 0, x, b, sum);
}

/* Add a * b to sum, of 2 L vectors. */
KERNEL void add_product(size_t n_limbs, const word *a, const word *b, word *sum)
{
    size_t i = 0;
    for (; i + ROWS <= n_limbs; i += ROWS)
        add_product_rows(ROWS, n_limbs, a + i * LANES, b, sum + i * LANES);
    for (; i + 2 <= n_limbs; i += 2)
        add_product_rows(2, n_limbs, a + i * LANES, b, sum + i * LANES);
    if (i < n_limbs)
        add_product_rows(1, n_limbs, a + i * LANES, b, sum + i * LANES);
}

/* Add the products of two different limbs of a, of which one is in `rows` rows from limb i on. */
INLINE void add_pairs(const int rows, size_t n_limbs, size_t i, const word *a, word *sum)
{
    vec x[ROWS], w[2 * ROWS];
    word *corner = sum + 2 * i * LANES;
    UNROLL for (int r = 0; r < rows; r++) x[r] = load(a + (i + r) * LANES);
    UNROLL for (int k = 0; k < 2 * rows; k++) w[k] = load(corner + k * LANES);
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int s = r + 1; s < rows; s++) {
            w[r + s] = low(w[r + s], x[r], x[s]);
            w[r + s + 1] = high(w[r + s + 1], x[r], x[s]);
        }
    }
    UNROLL for (int k = 0; k < 2 * rows; k++) store(corner + k * LANES, w[k]);
    sweep(rows, n_limbs, i + rows, x, a, sum + i * LANES);
}

/* sum = a^2, of 2 L vectors. */
KERNEL void set_square(size_t n_limbs, const word *a, word *sum)
{
    size_t i = 0;
    memset(sum, 0, 2 * n_limbs * LANES * sizeof(word));
    for (; i + ROWS <= n_limbs; i += ROWS)
        add_pairs(ROWS, n_limbs, i, a, sum);
    if (n_limbs - i >= 4) {
        add_pairs(4, n_limbs, i, a, sum);
        i += 4;
    }
    if (n_limbs - i >= 2)
        add_pairs(2, n_limbs, i, a, sum); /* one row more has no pair of its own */
    for (i = 0; i < n_limbs; i++) {
        word *even = sum + 2 * i * LANES, *odd = even + LANES;
        const vec limb = load(a + i * LANES);
        store(even, low(_mm512_slli_epi64(load(even), 1), limb, limb));
        store(odd, high(_mm512_slli_epi64(load(odd), 1), limb, limb));
    }
}

/* Modulo m^2, x0 y0 + (x0 y1 + x1 y0) m times 1 / R is u + v m, where Montgomery's reduction of
 * x0 y0 gives u = (x0 y0 + q m) / R and leaves -q m / R, so that v is the reduction of
 * x0 y1 + x1 y0 - q modulo m. All parts stay below 2 m, as R > 16 m.
 *
 * Parts of work memory, behind the 2 L vectors of a sum: the digits of q, and u. */
INLINE word *digits_in(const Ring *ring, word *sum)
{
    return ring->parts == 1 ? NULL : sum + 2 * ring->padded * LANES;
}

INLINE word *first_in(const Ring *ring, word *sum) { return sum + 3 * ring->padded * LANES; }

/* sum = -q modulo m, as (R - 1 - q) + (1 - R mod m), with no word below zero. */
KERNEL void set_minus_digits(const Ring *ring, word *sum)
{
    const word *digits = digits_in(ring, sum);
    const size_t half = ring->n_limbs * LANES;
    for (size_t k = 0; k < ring->n_limbs; k++) {
        const vec rest = _mm512_sub_epi64(everywhere(LIMB_MASK), load(digits + k * LANES));
        store(sum + k * LANES, _mm512_add_epi64(rest, everywhere(ring->complement[k])));
    }
    memset(sum + half, 0, half * sizeof(word));
}

/* out = a b / R, parts below 2 m; out may be a or b. sum: 2 numbers of work memory. */
KERNEL void multiply(const Ring *ring, word *out, const word *a, const word *b, word *sum)
{
    const size_t half = ring->n_limbs * LANES, second = ring->padded * LANES;
    memset(sum, 0, 2 * half * sizeof(word));
    add_and_reduce(ring, a, b, sum, digits_in(ring, sum));
    if (ring->parts == 1) {
        carry_over(ring, out, sum + half);
        return;
    }
    carry_over(ring, first_in(ring, sum), sum + half);
    set_minus_digits(ring, sum);
    add_product(ring->n_limbs, a, b + second, sum);
    add_and_reduce(ring, a + second, b, sum, NULL);
    memcpy(out, first_in(ring, sum), half * sizeof(word));
    carry_over(ring, out + second, sum + half);
}

/* out = a^2 / R, as `multiply`. */
KERNEL void square(const Ring *ring, word *out, const word *a, word *sum)
{
    const size_t half = ring->n_limbs * LANES, second = ring->padded * LANES;
    word *twice = digits_in(ring, sum);
    set_square(ring->n_limbs, a, sum);
    only_reduce(ring, sum, digits_in(ring, sum));
    if (ring->parts == 1) {
        carry_over(ring, out, sum + half);
        return;
    }
    carry_over(ring, first_in(ring, sum), sum + half);
    set_minus_digits(ring, sum);
    for (size_t k = 0; k < half; k += LANES)
        store(twice + k, _mm512_slli_epi64(load(a + second + k), 1));
    carry_over(ring, twice, twice);
    add_and_reduce(ring, a, twice, sum, NULL);
    memcpy(out, first_in(ring, sum), half * sizeof(word));
    carry_over(ring, out + second, sum + half);
}

/* out = a / R: out of Montgomery's form. Parts are at most m + 1. */
KERNEL void leave(const Ring *ring, word *out, const word *a, word *sum)
{
    const size_t half = ring->n_limbs * LANES, second = ring->padded * LANES;
    memcpy(sum, a, half * sizeof(word));
    memset(sum + half, 0, half * sizeof(word));
    only_reduce(ring, sum, digits_in(ring, sum));
    carry_over(ring, out, sum + half);
    if (ring->parts == 1)
        return;
    set_minus_digits(ring, sum);
    for (size_t k = 0; k < half; k += LANES)
        store(sum + k, _mm512_add_epi64(load(sum + k), load(a + second + k)));
    only_reduce(ring, sum, NULL);
    carry_over(ring, out + second, sum + half);
}

/* Reduce a number modulo m, below 2 m, to below m, without a branch; the caller of the module
 * does it modulo m^2. spare: L vectors. */
KERNEL void reduce(const Ring *ring, word *a, word *spare)
{
    if (ring->parts == 2)
        return;
    const vec mask = everywhere(LIMB_MASK);
    vec borrow = _mm512_setzero_si512();
    for (size_t k = 0; k < ring->n_limbs; k++) {
        vec rest = _mm512_sub_epi64(load(a + k * LANES), everywhere(ring->modulus[k]));
        rest = _mm512_sub_epi64(rest, borrow);
        store(spare + k * LANES, _mm512_and_si512(rest, mask));
        borrow = _mm512_srli_epi64(rest, 63);
    }
    const vec keep = _mm512_sub_epi64(_mm512_setzero_si512(), borrow);
    for (size_t k = 0; k < ring->n_limbs; k++) {
        const vec old = load(a + k * LANES), rest = load(spare + k * LANES);
        store(a + k * LANES, _mm512_or_si512(_mm512_and_si512(keep, old),
                                             _mm512_andnot_si512(keep, rest)));
    }
}

/* Write a little-endian number as limbs, `stride` words apart. */
static void limbs_of(const unsigned char *bytes, size_t width, word *limbs, size_t n_limbs,
                     size_t stride)
{
    unsigned char padded[MAX_BITS / 8 + 4 * sizeof(word)];
    memcpy(padded, bytes, width);
    memset(padded + width, 0, 2 * sizeof(word));
    for (size_t i = 0; i < n_limbs; i++) {
        size_t bit = i * LIMB_BITS;
        word value = 0;
        if (bit / 8 < width) {
            memcpy(&value, padded + bit / 8, sizeof value);
            value = (value >> bit % 8) & LIMB_MASK;
        }
        limbs[i * stride] = value;
    }
    wipe(padded, sizeof padded);
}

/* The reverse; a number that is shorter than its limbs. */
static void bytes_of(const word *limbs, size_t n_limbs, size_t stride, unsigned char *bytes,
                     size_t width)
{
    size_t i = 0, have = 0;
    unsigned __int128 pool = 0;
    for (size_t at = 0; at < width; at += sizeof(word)) {
        for (; have < 64 && i < n_limbs; have += LIMB_BITS)
            pool |= (unsigned __int128)limbs[i++ * stride] << have;
        word value = (word)pool;
        memcpy(bytes + at, &value, sizeof value);
        pool >>= 64;
        have = have < 64 ? 0 : have - 64;
    }
}

/* Up to eight numbers into lanes; lanes without one become zero. */
static void read_lanes(const Ring *ring, const unsigned char *bytes, size_t count, word *lanes)
{
    memset(lanes, 0, ring->stride * sizeof(word));
    for (size_t k = 0; k < count * ring->parts; k++)
        limbs_of(bytes + k * ring->width, ring->width,
                 lanes + k % ring->parts * ring->padded * LANES + k / ring->parts, ring->n_limbs,
                 LANES);
}

static void write_lanes(const Ring *ring, const word *lanes, size_t count, unsigned char *bytes)
{
    for (size_t k = 0; k < count * ring->parts; k++)
        bytes_of(lanes + k % ring->parts * ring->padded * LANES + k / ring->parts, ring->n_limbs,
                 LANES, bytes + k * ring->width, ring->width);
}

/* Exponents of `bits` bits, little-endian, `stride` bytes apart (0: the same for all). */
typedef struct {
    const unsigned char *bytes;
    size_t bits, stride, count;
} Exponents;

/* The digit of `window` bits from bit `at` on of one exponent. */
static word digit_of(const Exponents *exponents, size_t lane, size_t at, size_t window)
{
    const unsigned char *bytes = exponents->bytes + lane * exponents->stride;
    const size_t width = (exponents->bits + 7) / 8;
    word value = 0;
    if (lane >= exponents->count)
        return 0;
    for (size_t k = 0; k < 4 && at / 8 + k < width; k++)
        value |= (word)bytes[at / 8 + k] << (8 * k);
    return (value >> at % 8) & ((UINT64_C(1) << window) - 1);
}

/* out = table[digit], where each lane has its digit; reads the whole table in any case. */
KERNEL void select_entry(const Ring *ring, word *out, const word *table, size_t n_entries,
                         vec digits)
{
    const size_t stride = ring->stride;
    for (size_t k = 0; k < ring->n_words; k += LANES) {
        vec found[LANES];
        UNROLL for (int j = 0; j < LANES; j++) found[j] = _mm512_setzero_si512();
        for (size_t d = 0; d < n_entries; d++) {
            const word *entry = table + d * stride + k * LANES;
            /* All bits where the digit is d, by arithmetic: (x - 1 without x) has its top bit
             * set for x = 0 only. The barrier hides from the compiler what the mask can be. */
            vec same = _mm512_xor_si512(digits, everywhere(d));
            same = _mm512_andnot_si512(same, _mm512_sub_epi64(same, everywhere(1)));
            same = _mm512_srai_epi64(same, 63);
            __asm__ volatile("" : "+v"(same));
            UNROLL for (int j = 0; j < LANES; j++)
                found[j] = _mm512_or_si512(found[j],
                                           _mm512_and_si512(same, load(entry + j * LANES)));
        }
        UNROLL for (int j = 0; j < LANES; j++) store(out + (k + j) * LANES, found[j]);
    }
}

/* Window with the fewest products for exponents of this length. */
static size_t window_for(size_t bits)
{
    return bits < 9 ? 1 : bits < 25 ? 2 : bits < 81 ? 3 : bits < 241 ? 4 : 5;
}

static size_t power_words(const Ring *ring, size_t window)
{
    return ring->stride * (((size_t)1 << window) + 4);
}

/* Replace eight bases by their powers, below m. work: power_words(). */
KERNEL void power_lanes(const Ring *ring, word *lanes, const Exponents *exponents, size_t window,
                        word *work)
{
    const size_t stride = ring->stride, n_entries = (size_t)1 << window;
    word *table = work, *chosen = table + n_entries * stride, *sum = chosen + stride;
    memcpy(table, ring->one, stride * sizeof(word));
    multiply(ring, table + stride, lanes, ring->radix_square, sum);
    for (size_t d = 2; d < n_entries; d++) {
        if (d % 2)
            multiply(ring, table + d * stride, table + (d - 1) * stride, table + stride, sum);
        else
            square(ring, table + d * stride, table + d / 2 * stride, sum);
    }
    for (size_t at = (exponents->bits + window - 1) / window; at-- > 0;) {
        _Alignas(ALIGNMENT) word digits[LANES];
        for (size_t lane = 0; lane < LANES; lane++)
            digits[lane] = digit_of(exponents, lane, at * window, window);
        select_entry(ring, chosen, table, n_entries, load(digits));
        wipe(digits, sizeof digits);
        if ((at + 1) * window >= exponents->bits) {
            memcpy(lanes, chosen, stride * sizeof(word));
            continue;
        }
        for (size_t k = 0; k < window; k++)
            square(ring, lanes, lanes, sum);
        multiply(ring, lanes, lanes, chosen, sum);
    }
    leave(ring, lanes, lanes, sum);
    reduce(ring, lanes, sum);
}

typedef struct {
    size_t exponent_bits, window, n_rows, n_words;
    word *words; /* [row][digit][padded limb], Montgomery's form, below 2 m */
} Grid;

static word *grid_entry(const Ring *ring, const Grid *grid, size_t row, size_t number)
{
    return grid->words + ((row << grid->window) + number) * ring->n_words;
}

/* Transpose an 8 by 8 matrix of words. */
INLINE void transpose(vec row[LANES])
{
    vec t[LANES], u[LANES];
    UNROLL for (int k = 0; k < 4; k++) {
        t[k] = _mm512_unpacklo_epi64(row[2 * k], row[2 * k + 1]);
        t[k + 4] = _mm512_unpackhi_epi64(row[2 * k], row[2 * k + 1]);
    }
    UNROLL for (int k = 0; k < 4; k++) {
        u[2 * k] = _mm512_shuffle_i64x2(t[2 * k], t[2 * k + 1], 0x88);
        u[2 * k + 1] = _mm512_shuffle_i64x2(t[2 * k], t[2 * k + 1], 0xdd);
    }
    UNROLL for (int k = 0; k < 2; k++) {
        row[2 * 0 + k] = _mm512_shuffle_i64x2(u[4 * k], u[4 * k + 2], 0x88);
        row[2 * 1 + k] = _mm512_shuffle_i64x2(u[4 * k + 1], u[4 * k + 3], 0x88);
        row[2 * 2 + k] = _mm512_shuffle_i64x2(u[4 * k], u[4 * k + 2], 0xdd);
        row[2 * 3 + k] = _mm512_shuffle_i64x2(u[4 * k + 1], u[4 * k + 3], 0xdd);
    }
}

KERNEL void entries_to_lanes(const Ring *ring, word *lanes, word *const entry[LANES])
{
    for (size_t k = 0; k < ring->n_words; k += LANES) {
        vec rows[LANES];
        UNROLL for (int lane = 0; lane < LANES; lane++) rows[lane] = load(entry[lane] + k);
        transpose(rows);
        UNROLL for (int j = 0; j < LANES; j++) store(lanes + (k + j) * LANES, rows[j]);
    }
}

KERNEL void lanes_to_entries(const Ring *ring, word *const entry[LANES], size_t count,
                             const word *lanes)
{
    for (size_t k = 0; k < ring->n_words; k += LANES) {
        vec rows[LANES];
        UNROLL for (int j = 0; j < LANES; j++) rows[j] = load(lanes + (k + j) * LANES);
        transpose(rows);
        for (size_t lane = 0; lane < count; lane++)
            store(entry[lane] + k, rows[lane]);
    }
}

/* Fill the table from a base in Montgomery's form, alike in all lanes. work: 4 numbers. */
KERNEL void fill_grid(const Ring *ring, const Grid *grid, word *base, word *work)
{
    const size_t stride = ring->stride;
    word *steps = work, *power = steps + stride, *sum = power + stride;
    for (size_t row = 0; row < grid->n_rows; row += LANES) {
        size_t count = grid->n_rows - row < LANES ? grid->n_rows - row : LANES;
        for (size_t lane = 0; lane < count; lane++) {
            for (size_t k = 0; k < ring->n_words; k++)
                steps[k * LANES + lane] = base[k * LANES];
            for (size_t k = 0; k < grid->window; k++)
                square(ring, base, base, sum);
        }
        memcpy(power, ring->one, stride * sizeof(word));
        for (size_t number = 0; number >> grid->window == 0; number++) {
            word *entry[LANES];
            for (size_t lane = 0; lane < count; lane++)
                entry[lane] = grid_entry(ring, grid, row + lane, number);
            lanes_to_entries(ring, entry, count, power);
            multiply(ring, power, power, steps, sum);
        }
    }
}

static void find_entries(const Ring *ring, const Grid *grid, const Exponents *exponents,
                         size_t row, word *entry[LANES])
{
    for (size_t lane = 0; lane < LANES; lane++) {
        word number = digit_of(exponents, lane, row * grid->window, grid->window);
        entry[lane] = grid_entry(ring, grid, row, number);
    }
}

/* Eight powers of the fixed base, below m. work: 3 numbers. */
KERNEL void grid_power(const Ring *ring, const Grid *grid, const Exponents *exponents,
                       word *lanes, word *work)
{
    word *chosen = work, *sum = chosen + ring->stride, *entry[LANES];
    find_entries(ring, grid, exponents, 0, entry);
    entries_to_lanes(ring, lanes, entry);
    for (size_t row = 1; row < grid->n_rows; row++) {
        find_entries(ring, grid, exponents, row, entry);
        entries_to_lanes(ring, chosen, entry);
        if (row + 1 < grid->n_rows) {
            /* The next entries come from far memory while this product is computed. */
            find_entries(ring, grid, exponents, row + 1, entry);
            for (size_t lane = 0; lane < LANES; lane++)
                for (size_t k = 0; k < ring->n_words; k += LANES)
                    _mm_prefetch((const char *)(entry[lane] + k), _MM_HINT_T1);
        }
        multiply(ring, lanes, lanes, chosen, sum);
    }
    leave(ring, lanes, lanes, sum);
    reduce(ring, lanes, sum);
    wipe(entry, sizeof entry);
}

typedef struct {
    PyObject_HEAD
    Ring ring;
} Context;

typedef struct {
    PyObject_HEAD
    Context *context;
    Grid grid;
} Table;

typedef struct {
    PyTypeObject *context_type, *table_type;
} State;

static int is_supported(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512ifma")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512bw");
}

/* A buffer of whole numbers; -1 with an error set if it is not one. */
static Py_ssize_t count_numbers(const Py_buffer *buffer, size_t width)
{
    if ((size_t)buffer->len % width) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are not whole numbers of %zu bytes", buffer->len,
                     width);
        return -1;
    }
    return buffer->len / (Py_ssize_t)width;
}

KERNEL void set_up_ring(Ring *ring, const Py_buffer buffers[3], word *sum)
{
    limbs_of(buffers[0].buf, ring->width, ring->modulus, ring->n_limbs, 1);
    limbs_of(buffers[2].buf, ring->width, ring->complement, ring->n_limbs, 1);
    for (size_t lane = 0; lane < LANES; lane++) {
        for (size_t part = 0; part < ring->parts; part++)
            limbs_of((const unsigned char *)buffers[1].buf + part * ring->width, ring->width,
                     ring->radix_square + part * ring->padded * LANES + lane, ring->n_limbs,
                     LANES);
        ring->one[lane] = 1;
    }
    /* Newton: every step doubles the number of correct low bits, from 3 on. */
    word inverse = ring->modulus[0];
    for (int k = 0; k < 5; k++)
        inverse *= 2 - ring->modulus[0] * inverse;
    ring->inverse = (0 - inverse) & LIMB_MASK;
    multiply(ring, ring->one, ring->one, ring->radix_square, sum);
}

static size_t limbs_for(size_t bits)
{
    size_t n_limbs = (bits + SPARE_BITS + LIMB_BITS - 1) / LIMB_BITS;
    return n_limbs < ROWS ? ROWS : n_limbs;
}

static int start_ring(Ring *ring, size_t bits, const Py_buffer buffers[3])
{
    ring->n_limbs = limbs_for(bits);
    ring->padded = PADDED(ring->n_limbs);
    ring->n_words = ring->parts * ring->padded;
    ring->stride = ring->n_words * LANES;
    ring->modulus = new_words(ring->padded);
    ring->complement = new_words(ring->padded);
    ring->radix_square = new_words(ring->stride);
    ring->one = new_words(ring->stride);
    word *sum = new_words(2 * ring->stride);
    int done = ring->modulus && ring->complement && ring->radix_square && ring->one && sum;
    if (done)
        set_up_ring(ring, buffers, sum);
    free_words(sum, 2 * ring->stride);
    if (!done)
        PyErr_NoMemory();
    return done;
}

static size_t bit_length(const Py_buffer *number)
{
    const unsigned char *bytes = number->buf;
    size_t n_bytes = (size_t)number->len, bits = 0;
    while (n_bytes && !bytes[n_bytes - 1])
        n_bytes--;
    if (n_bytes)
        for (unsigned top = bytes[n_bytes - 1]; top; top >>= 1)
            bits++;
    return n_bytes ? 8 * (n_bytes - 1) + bits : 0;
}

/* Number of parts, 1 or 2, if the buffers have lengths that fit together; otherwise 0. */
static size_t count_parts(const Py_buffer buffers[3], size_t bits)
{
    const size_t width = (size_t)buffers[0].len, length = (size_t)buffers[1].len;
    if (bits < 2 || bits > MAX_BITS || !(((const unsigned char *)buffers[0].buf)[0] & 1)
        || width % 8 || width > MAX_BITS / 8 + 8 || buffers[2].len != buffers[0].len)
        return 0;
    /* A part may come out as m + 1. */
    return length == width ? 1 : length == 2 * width && 8 * width > bits ? 2 : 0;
}

static PyObject *context_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(keywords))
{
    Py_buffer buffers[3];
    Context *self = NULL;
    if (!PyArg_ParseTuple(args, "y*y*y*", &buffers[0], &buffers[1], &buffers[2]))
        return NULL;
    const size_t bits = bit_length(&buffers[0]), parts = count_parts(buffers, bits);
    if (!is_supported())
        PyErr_SetString(PyExc_RuntimeError, "this processor has no AVX-512 IFMA");
    else if (!parts)
        PyErr_Format(PyExc_ValueError,
                     "expected an odd modulus of 2 to %d bits, one or two parts of R^2 and "
                     "1 - R, all in the same number of 64-bit words",
                     MAX_BITS);
    else if ((self = (Context *)type->tp_alloc(type, 0))) {
        self->ring.parts = parts;
        self->ring.width = (size_t)buffers[0].len;
        self->ring.n_bytes = parts * self->ring.width;
        if (!start_ring(&self->ring, bits, buffers))
            Py_CLEAR(self);
    }
    for (int k = 0; k < 3; k++)
        PyBuffer_Release(&buffers[k]);
    return (PyObject *)self;
}

static void context_dealloc(PyObject *object)
{
    Ring *ring = &((Context *)object)->ring;
    PyTypeObject *type = Py_TYPE(object);
    free_words(ring->modulus, ring->padded);
    free_words(ring->complement, ring->padded);
    free_words(ring->radix_square, ring->stride);
    free_words(ring->one, ring->stride);
    wipe(ring, sizeof *ring);
    type->tp_free(object);
    Py_DECREF(type);
}

static size_t lanes_from(size_t count, size_t first)
{
    return count - first < LANES ? count - first : LANES;
}

KERNEL void multiply_all(const Ring *ring, const unsigned char *left, const unsigned char *right,
                         size_t count, unsigned char *out, word *work)
{
    const size_t stride = ring->stride, width = ring->n_bytes;
    word *a = work, *b = a + stride, *sum = b + stride;
    for (size_t first = 0; first < count; first += LANES) {
        size_t n_lanes = lanes_from(count, first);
        read_lanes(ring, left + first * width, n_lanes, a);
        read_lanes(ring, right + first * width, n_lanes, b);
        multiply(ring, a, a, b, sum);
        multiply(ring, a, a, ring->radix_square, sum);
        reduce(ring, a, sum);
        write_lanes(ring, a, n_lanes, out + first * width);
    }
}

static PyObject *context_multiply(PyObject *object, PyObject *args)
{
    const Ring *ring = &((Context *)object)->ring;
    Py_buffer left, right;
    PyObject *out = NULL;
    if (!PyArg_ParseTuple(args, "y*y*", &left, &right))
        return NULL;
    Py_ssize_t count = count_numbers(&left, ring->n_bytes);
    if (count >= 0 && left.len != right.len)
        PyErr_SetString(PyExc_ValueError, "expected as many numbers left as right");
    else if (count >= 0 && (out = PyBytes_FromStringAndSize(NULL, left.len))) {
        const size_t n_work = 4 * ring->stride;
        word *work = new_words(n_work);
        unsigned char *to = (unsigned char *)PyBytes_AS_STRING(out);
        if (work) {
            Py_BEGIN_ALLOW_THREADS
            multiply_all(ring, left.buf, right.buf, (size_t)count, to, work);
            free_words(work, n_work);
            Py_END_ALLOW_THREADS
        } else {
            Py_CLEAR(out);
            PyErr_NoMemory();
        }
    }
    PyBuffer_Release(&left);
    PyBuffer_Release(&right);
    return out;
}

static void power_all(const Ring *ring, const unsigned char *bases, size_t count,
                      Exponents exponents, unsigned char *out, size_t window, word *work)
{
    word *lanes = work, *rest = work + ring->stride;
    for (size_t first = 0; first < count; first += LANES) {
        size_t n_lanes = lanes_from(count, first);
        read_lanes(ring, bases + first * ring->n_bytes, n_lanes, lanes);
        exponents.count = exponents.stride ? n_lanes : LANES;
        power_lanes(ring, lanes, &exponents, window, rest);
        write_lanes(ring, lanes, n_lanes, out + first * ring->n_bytes);
        exponents.bytes += LANES * exponents.stride;
    }
}

/* Exponents of one width; -1 with an error set if the buffer does not hold them. */
static Py_ssize_t count_exponents(const Py_buffer *buffer, Py_ssize_t bits)
{
    if (bits < 1 || bits > PY_SSIZE_T_MAX - 7) {
        PyErr_SetString(PyExc_ValueError, "expected exponents of at least 1 bit");
        return -1;
    }
    return count_numbers(buffer, ((size_t)bits + 7) / 8);
}

static PyObject *context_power(PyObject *object, PyObject *args)
{
    const Ring *ring = &((Context *)object)->ring;
    Py_buffer bases, buffer;
    Py_ssize_t bits, count, n_exponents;
    PyObject *out = NULL;
    if (!PyArg_ParseTuple(args, "y*y*n", &bases, &buffer, &bits))
        return NULL;
    if ((count = count_numbers(&bases, ring->n_bytes)) < 0
        || (n_exponents = count_exponents(&buffer, bits)) < 0)
        goto release;
    if (n_exponents != 1 && n_exponents != count) {
        PyErr_Format(PyExc_ValueError, "%zd exponents for %zd bases", n_exponents, count);
        goto release;
    }
    if ((out = PyBytes_FromStringAndSize(NULL, bases.len))) {
        const Exponents exponents = {buffer.buf, (size_t)bits,
                                     n_exponents == 1 ? 0 : ((size_t)bits + 7) / 8, 0};
        const size_t window = window_for((size_t)bits);
        const size_t n_work = power_words(ring, window) + ring->stride;
        word *work = new_words(n_work);
        unsigned char *to = (unsigned char *)PyBytes_AS_STRING(out);
        if (work) {
            Py_BEGIN_ALLOW_THREADS
            power_all(ring, bases.buf, (size_t)count, exponents, to, window, work);
            free_words(work, n_work);
            Py_END_ALLOW_THREADS
        } else {
            Py_CLEAR(out);
            PyErr_NoMemory();
        }
    }
release:
    PyBuffer_Release(&bases);
    PyBuffer_Release(&buffer);
    return out;
}

/* An empty table, or NULL with an error set. */
static Table *new_table(Context *context, Py_ssize_t exponent_bits, Py_ssize_t window)
{
    State *state = PyType_GetModuleState(Py_TYPE(context));
    if (!state)
        return NULL;
    if (exponent_bits < 1 || exponent_bits > INT32_MAX || window < 1 || window > MAX_WINDOW_BITS) {
        PyErr_Format(PyExc_ValueError, "exponents of %zd bits by windows of %zd are out of range",
                     exponent_bits, window);
        return NULL;
    }
    Table *self = (Table *)state->table_type->tp_alloc(state->table_type, 0);
    if (!self)
        return NULL;
    Grid *grid = &self->grid;
    self->context = (Context *)Py_NewRef((PyObject *)context);
    grid->exponent_bits = (size_t)exponent_bits;
    grid->window = (size_t)window;
    grid->n_rows = (grid->exponent_bits + grid->window - 1) / grid->window;
    grid->n_words = (grid->n_rows << grid->window) * context->ring.n_words;
    if (!(grid->words = new_words(grid->n_words))) {
        PyErr_NoMemory();
        Py_CLEAR(self);
    }
    return self;
}

static void table_dealloc(PyObject *object)
{
    Table *self = (Table *)object;
    PyTypeObject *type = Py_TYPE(object);
    free_words(self->grid.words, self->grid.n_words);
    Py_XDECREF((PyObject *)self->context);
    type->tp_free(object);
    Py_DECREF(type);
}

static void make_grid(const Ring *ring, const Grid *grid, const unsigned char *number, word *work)
{
    const size_t stride = ring->stride;
    read_lanes(ring, number, 1, work);
    for (size_t k = 0; k < stride; k++)
        work[k] = work[k / LANES * LANES];
    multiply(ring, work, work, ring->radix_square, work + stride);
    fill_grid(ring, grid, work, work + stride);
}

static PyObject *context_table(PyObject *object, PyObject *args)
{
    const Ring *ring = &((Context *)object)->ring;
    Py_buffer base;
    Py_ssize_t exponent_bits, window;
    Table *table = NULL;
    if (!PyArg_ParseTuple(args, "y*nn", &base, &exponent_bits, &window))
        return NULL;
    if ((size_t)base.len != ring->n_bytes)
        PyErr_Format(PyExc_ValueError, "a base of %zd bytes, not %zu", base.len, ring->n_bytes);
    else if ((table = new_table((Context *)object, exponent_bits, window))) {
        const size_t n_work = 5 * ring->stride;
        word *work = new_words(n_work);
        if (work) {
            Py_BEGIN_ALLOW_THREADS
            make_grid(ring, &table->grid, base.buf, work);
            free_words(work, n_work);
            Py_END_ALLOW_THREADS
        } else {
            Py_CLEAR(table);
            PyErr_NoMemory();
        }
    }
    PyBuffer_Release(&base);
    return (PyObject *)table;
}

/* Entries number first to first + count: out of the table as bytes, or from bytes into it. */
KERNEL void copy_entries(const Ring *ring, const Grid *grid, size_t first, size_t count,
                         unsigned char *out, const unsigned char *in, word *work)
{
    word *lanes = work, *sum = work + ring->stride, *entry[LANES];
    for (size_t at = 0; at < count; at += LANES) {
        size_t n_lanes = lanes_from(count, at);
        for (size_t lane = 0; lane < LANES; lane++)
            entry[lane] = grid_entry(ring, grid, 0, first + at + (lane < n_lanes ? lane : 0));
        if (in) {
            read_lanes(ring, in + at * ring->n_bytes, n_lanes, lanes);
            multiply(ring, lanes, lanes, ring->radix_square, sum);
            lanes_to_entries(ring, entry, n_lanes, lanes);
        } else {
            entries_to_lanes(ring, lanes, entry);
            leave(ring, lanes, lanes, sum);
            reduce(ring, lanes, sum);
            write_lanes(ring, lanes, n_lanes, out + at * ring->n_bytes);
        }
    }
}

static PyObject *context_read_table(PyObject *object, PyObject *args)
{
    const Ring *ring = &((Context *)object)->ring;
    Py_buffer body;
    Py_ssize_t exponent_bits, window;
    Table *table = NULL;
    if (!PyArg_ParseTuple(args, "y*nn", &body, &exponent_bits, &window))
        return NULL;
    if ((table = new_table((Context *)object, exponent_bits, window))) {
        const size_t n_work = 3 * ring->stride;
        const size_t count = table->grid.n_rows << window;
        word *work = NULL;
        if ((size_t)body.len != count * ring->n_bytes) {
            Py_CLEAR(table);
            PyErr_Format(PyExc_ValueError, "%zd bytes are not %zu numbers", body.len, count);
        } else if (!(work = new_words(n_work))) {
            Py_CLEAR(table);
            PyErr_NoMemory();
        } else {
            Py_BEGIN_ALLOW_THREADS
            copy_entries(ring, &table->grid, 0, count, NULL, body.buf, work);
            free_words(work, n_work);
            Py_END_ALLOW_THREADS
        }
    }
    PyBuffer_Release(&body);
    return (PyObject *)table;
}

static PyObject *table_entries(PyObject *object, PyObject *args)
{
    const Grid *grid = &((Table *)object)->grid;
    const Ring *ring = &((Table *)object)->context->ring;
    const size_t n_work = 3 * ring->stride;
    const Py_ssize_t most = (Py_ssize_t)(grid->n_rows << grid->window);
    Py_ssize_t first, count;
    if (!PyArg_ParseTuple(args, "nn", &first, &count))
        return NULL;
    if (first < 0 || count < 0 || first > most || count > most - first) {
        PyErr_SetString(PyExc_IndexError, "no such entries");
        return NULL;
    }
    PyObject *out = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)ring->n_bytes);
    word *work = out ? new_words(n_work) : NULL;
    if (work) {
        unsigned char *to = (unsigned char *)PyBytes_AS_STRING(out);
        Py_BEGIN_ALLOW_THREADS
        copy_entries(ring, grid, (size_t)first, (size_t)count, to, NULL, work);
        free_words(work, n_work);
        Py_END_ALLOW_THREADS
    } else if (out) {
        Py_CLEAR(out);
        PyErr_NoMemory();
    }
    return out;
}

static void grid_power_all(const Ring *ring, const Grid *grid, const unsigned char *bytes,
                           size_t count, unsigned char *out, word *work)
{
    Exponents exponents = {bytes, grid->exponent_bits, (grid->exponent_bits + 7) / 8, 0};
    for (size_t first = 0; first < count; first += LANES) {
        exponents.count = lanes_from(count, first);
        grid_power(ring, grid, &exponents, work, work + ring->stride);
        write_lanes(ring, work, exponents.count, out + first * ring->n_bytes);
        exponents.bytes += LANES * exponents.stride;
    }
}

static PyObject *table_power(PyObject *object, PyObject *args)
{
    const Grid *grid = &((Table *)object)->grid;
    const Ring *ring = &((Table *)object)->context->ring;
    const size_t n_work = 4 * ring->stride;
    Py_buffer buffer;
    PyObject *out = NULL;
    word *work = NULL;
    if (!PyArg_ParseTuple(args, "y*", &buffer))
        return NULL;
    Py_ssize_t count = count_exponents(&buffer, (Py_ssize_t)grid->exponent_bits);
    if (count >= 0)
        out = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)ring->n_bytes);
    if (out && (work = new_words(n_work))) {
        unsigned char *to = (unsigned char *)PyBytes_AS_STRING(out);
        Py_BEGIN_ALLOW_THREADS
        grid_power_all(ring, grid, buffer.buf, (size_t)count, to, work);
        free_words(work, n_work);
        Py_END_ALLOW_THREADS
    } else if (out) {
        Py_CLEAR(out);
        PyErr_NoMemory();
    }
    PyBuffer_Release(&buffer);
    return out;
}

static PyMethodDef context_methods[] = {
    {"multiply", context_multiply, METH_VARARGS, "Multiply two buffers of numbers."},
    {"power", context_power, METH_VARARGS, "Powers: bases, one exponent or as many, their bits."},
    {"table", context_table, METH_VARARGS, "Table of a base: base, exponent bits, window bits."},
    {"read_table", context_read_table, METH_VARARGS, "Table from the bytes of all its entries."},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef table_methods[] = {
    {"power", table_power, METH_VARARGS, "Powers of the base for a buffer of exponents."},
    {"entries", table_entries, METH_VARARGS, "Entries as bytes: number of the first, how many."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot context_slots[] = {
    {Py_tp_new, context_new},
    {Py_tp_dealloc, context_dealloc},
    {Py_tp_methods, context_methods},
    {0, NULL},
};

static PyType_Slot table_slots[] = {
    {Py_tp_dealloc, table_dealloc},
    {Py_tp_methods, table_methods},
    {0, NULL},
};

static PyType_Spec context_spec = {
    .name = "mpcfl.hazmat._ifma.Context",
    .basicsize = sizeof(Context),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = context_slots,
};

static PyType_Spec table_spec = {
    .name = "mpcfl.hazmat._ifma.Table",
    .basicsize = sizeof(Table),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = table_slots,
};

static int add_types(PyObject *module)
{
    State *state = PyModule_GetState(module);
    state->context_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &context_spec, NULL);
    state->table_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &table_spec, NULL);
    if (!state->context_type || !state->table_type)
        return -1;
    return PyModule_AddType(module, state->context_type);
}

static int clear_state(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->context_type);
    Py_CLEAR(state->table_type);
    return 0;
}

static PyObject *radix_bits(PyObject *Py_UNUSED(module), PyObject *argument)
{
    size_t bits = PyLong_AsSize_t(argument);
    if (PyErr_Occurred())
        return NULL;
    if (bits > MAX_BITS) {
        PyErr_Format(PyExc_ValueError, "a modulus has at most %d bits", MAX_BITS);
        return NULL;
    }
    return PyLong_FromSize_t(LIMB_BITS * limbs_for(bits));
}

#else /* HAVE_KERNEL */

#define MAX_BITS 0

static int is_supported(void) { return 0; }

static int add_types(PyObject *Py_UNUSED(module)) { return 0; }

#endif /* HAVE_KERNEL */

static PyObject *supported(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(is_supported());
}

static int start_module(PyObject *module)
{
    if (PyModule_AddIntConstant(module, "MAX_BITS", MAX_BITS) < 0
        || PyModule_AddIntConstant(module, "INTERFACE", 2) < 0)
        return -1;
    return add_types(module);
}

static PyMethodDef module_methods[] = {
    {"supported", supported, METH_NOARGS, "Whether this processor and this build have it."},
#if HAVE_KERNEL
    {"radix_bits", radix_bits, METH_O, "log2 of Montgomery's R for moduli of that many bits."},
#endif
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, start_module},
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mpcfl.hazmat._ifma",
    .m_doc = "Modular arithmetic on eight numbers at once; use mpcfl.hazmat.modular.",
    .m_methods = module_methods,
    .m_slots = module_slots,
#if HAVE_KERNEL
    .m_size = sizeof(State),
    .m_clear = clear_state,
#endif
};

PyMODINIT_FUNC PyInit__ifma(void);

PyMODINIT_FUNC PyInit__ifma(void) { return PyModuleDef_Init(&module_definition); }
