/* An exact bilinear form of integers: the sum of a[i] v[i, j] b[j] over all i and j.
 *
 * v is a vector of int32 or int64 in rows of as many values as b has; the last row may be shorter.
 * a and b are words of 64 bits. The result is an integer; linear_tag.py takes it mod p.
 *
 * b is cut into three limbs of 22 bits. A row of at most 1024 values of 32 bits, each times a limb,
 * adds up to at most 2^31 (2^22 - 1) 2^10 < 2^63, whatever the order, which the compiler chooses.
 * A row of them times b is below 2^(31 + 64 + 10); times a, added up over fewer than 2^64 rows,
 * below 2^233. An int64 v goes in as low + 2^32 high, both with a sign, which fits unless
 * v >= 2^63 - 2^31; the sum of both is below 2^(233 + 32 + 1), so that fewer than 2^50 rows are
 * taken, and nothing leaves 256 bits.
 *
 * No branch and no address depends on v, a or b. Copies of them are wiped.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__SIZEOF_INT128__) && !defined(MPCFL_NO_KERNEL)
#define HAVE_KERNEL 1
#else
#define HAVE_KERNEL 0
#endif

#if HAVE_KERNEL

#include <stdint.h>
#include <string.h>

#define MAX_COLUMNS 1024
#define MAX_ROWS (UINT64_C(1) << 50)
#define LIMB_BITS 22
#define LIMB_MASK ((UINT64_C(1) << LIMB_BITS) - 1)
#define N_LIMBS 3
#define WORD_BITS 64
#define HALF_BITS 32
#define TOTAL_WORDS 4
/* Rows that are multiplied by what is loaded of b. */
#define ROWS 2

#define INLINE static inline __attribute__((always_inline))

typedef uint64_t word;
typedef __int128 wide;
typedef unsigned __int128 unsigned_wide;

typedef struct {
    const void *values;
    size_t length;   /* of all values */
    size_t width;    /* values of a row */
    int is_short;    /* int32, and not int64 */
    int halves;      /* of an int64 that count: 1, where all of them fit 32 bits, or 2 */
    const word *rows; /* a */
    int32_t limbs[N_LIMBS][MAX_COLUMNS]; /* of b */
    int32_t halved[2][ROWS][MAX_COLUMNS]; /* lower and upper halves of int64 */
    word total[TOTAL_WORDS]; /* two's complement, the low word first */
} Form;

static void wipe(void *memory, size_t n_bytes)
{
    memset(memory, 0, n_bytes);
    __asm__ volatile("" : : "r"(memory) : "memory"); /* the compiler may not drop it */
}

static void cut_columns(Form *form, const word *columns)
{
    for (size_t j = 0; j < form->width; j++) {
        for (int k = 0; k < N_LIMBS; k++)
            form->limbs[k][j] = (int32_t)(columns[j] >> (k * LIMB_BITS) & LIMB_MASK);
    }
}

/* total += a sum 2^(32 half) */
static void add_product(word total[TOTAL_WORDS], word a, wide sum, int half)
{
    const word low = (word)sum, high = (word)((unsigned_wide)sum >> WORD_BITS);
    const unsigned_wide first = (unsigned_wide)a * low;
    const unsigned_wide second = (unsigned_wide)a * high + (word)(first >> WORD_BITS);
    /* The high word of a negative sum was read as too large by 2^64. */
    const word too_much = a & (0 - (high >> (WORD_BITS - 1)));
    const word third = (word)(second >> WORD_BITS) - too_much;
    const word sign = 0 - (third >> (WORD_BITS - 1));
    word product[TOTAL_WORDS] = {(word)first, (word)second, third, sign};
    for (int k = TOTAL_WORDS - 1; half && k >= 0; k--) {
        product[k] <<= HALF_BITS;
        if (k)
            product[k] |= product[k - 1] >> HALF_BITS;
    }
    word carry = 0;
    for (int k = 0; k < TOTAL_WORDS; k++) {
        const unsigned_wide with_carry = (unsigned_wide)total[k] + product[k] + carry;
        total[k] = (word)with_carry;
        carry = (word)(with_carry >> WORD_BITS);
    }
}

INLINE wide put_together(int64_t low, int64_t middle, int64_t high)
{
    const wide radix = (wide)1 << LIMB_BITS;
    return low + radix * (middle + radix * high);
}

/* Add two rows of the form; where there is one, the other is any row and its a is 0. */
INLINE void add_rows(Form *form, const int32_t *one, const int32_t *other, size_t length,
                     const word a[ROWS], int half)
{
    const int32_t *low = form->limbs[0], *middle = form->limbs[1], *high = form->limbs[2];
    int64_t one_low = 0, one_middle = 0, one_high = 0;
    int64_t other_low = 0, other_middle = 0, other_high = 0;
    for (size_t j = 0; j < length; j++) {
        one_low += (int64_t)one[j] * low[j];
        one_middle += (int64_t)one[j] * middle[j];
        one_high += (int64_t)one[j] * high[j];
        other_low += (int64_t)other[j] * low[j];
        other_middle += (int64_t)other[j] * middle[j];
        other_high += (int64_t)other[j] * high[j];
    }
    add_product(form->total, a[0], put_together(one_low, one_middle, one_high), half);
    add_product(form->total, a[1], put_together(other_low, other_middle, other_high), half);
}

/* v = low + 2^32 high with a signed low. */
INLINE void halve(const int64_t *values, size_t length, int32_t *low, int32_t *high)
{
    for (size_t j = 0; j < length; j++) {
        const word bits = (word)values[j];
        low[j] = (int32_t)(uint32_t)bits;
        high[j] = (int32_t)(uint32_t)((bits + (UINT64_C(1) << (HALF_BITS - 1))) >> HALF_BITS);
    }
}

INLINE void add_all(Form *form)
{
    const size_t width = form->width;
    for (size_t start = 0, row = 0; start < form->length;) {
        const size_t left = form->length - start;
        /* Two whole rows, or one, or the short one at the end. */
        const size_t n_rows = left >= ROWS * width ? ROWS : 1;
        const size_t length = left < width ? left : width;
        const size_t step = n_rows == ROWS ? width : 0;
        const word a[ROWS] = {form->rows[row], n_rows == ROWS ? form->rows[row + 1] : 0};
        if (form->is_short) {
            const int32_t *values = (const int32_t *)form->values + start;
            add_rows(form, values, values + step, length, a, 0);
        } else {
            const int64_t *values = (const int64_t *)form->values + start;
            for (size_t r = 0; r < ROWS; r++)
                halve(values + r * step, length, form->halved[0][r], form->halved[1][r]);
            for (int half = 0; half < form->halves; half++)
                add_rows(form, form->halved[half][0], form->halved[half][1], length, a, half);
        }
        start += n_rows * length;
        row += n_rows;
    }
}

static void compute_anywhere(Form *form) { add_all(form); }

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void compute_avx2(Form *form) { add_all(form); }
#define HAS_AVX2 __builtin_cpu_supports("avx2")
#else
#define compute_avx2 compute_anywhere
#define HAS_AVX2 0
#endif

static void compute(Form *form)
{
    if (HAS_AVX2)
        compute_avx2(form);
    else
        compute_anywhere(form);
}

/* Whether a buffer is a contiguous, aligned vector of this type. `formats` are the letters that
 * stand for it on this machine or a longer one. */
static int is_vector(const Py_buffer *buffer, const char *formats, Py_ssize_t n_bytes)
{
    return buffer->ndim == 1 && buffer->itemsize == n_bytes && buffer->format
           && buffer->format[0] && !buffer->format[1] && strchr(formats, buffer->format[0])
           && (uintptr_t)buffer->buf % (size_t)n_bytes == 0;
}

static int get_vectors(PyObject *const *objects, Py_buffer *buffers, int count)
{
    for (int k = 0; k < count; k++) {
        if (PyObject_GetBuffer(objects[k], &buffers[k], PyBUF_ND | PyBUF_FORMAT) < 0) {
            while (k--)
                PyBuffer_Release(&buffers[k]);
            return -1;
        }
    }
    return 0;
}

/* Fill in the form; -1 and an error if the buffers are no form's. */
static int read_form(Form *form, const Py_buffer *values, const Py_buffer *columns,
                     const Py_buffer *rows)
{
    const int is_short = is_vector(values, "il", sizeof(int32_t));
    if (!is_short && !is_vector(values, "lq", sizeof(int64_t))) {
        PyErr_SetString(PyExc_TypeError, "values are no vector of int32 or int64");
        return -1;
    }
    if (!is_vector(columns, "LQ", sizeof(word)) || !is_vector(rows, "LQ", sizeof(word))) {
        PyErr_SetString(PyExc_TypeError, "columns and rows are no vectors of uint64");
        return -1;
    }
    form->is_short = is_short;
    form->values = values->buf;
    form->rows = rows->buf;
    form->length = (size_t)values->shape[0];
    form->width = (size_t)columns->shape[0];
    if (form->width < 1 || form->width > MAX_COLUMNS) {
        PyErr_Format(PyExc_ValueError, "%zu columns, not 1 to %d", form->width, MAX_COLUMNS);
        return -1;
    }
    const size_t n_rows = form->length / form->width + (form->length % form->width > 0);
    if ((size_t)rows->shape[0] != n_rows || n_rows >= MAX_ROWS) {
        PyErr_Format(PyExc_ValueError, "%zd rows for values of %zu", rows->shape[0], n_rows);
        return -1;
    }
    cut_columns(form, columns->buf);
    return 0;
}

static PyObject *total_as_bytes(const Form *form)
{
    unsigned char bytes[TOTAL_WORDS * sizeof(word)];
    for (size_t k = 0; k < sizeof bytes; k++)
        bytes[k] = (unsigned char)(form->total[k / sizeof(word)] >> (8 * (k % sizeof(word))));
    return PyBytes_FromStringAndSize((const char *)bytes, sizeof bytes);
}

static PyObject *bilinear_form(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *objects[3], *result = NULL;
    Py_buffer buffers[3];
    int halves;
    if (!PyArg_ParseTuple(args, "OOOi", &objects[0], &objects[1], &objects[2], &halves))
        return NULL;
    if (halves != 1 && halves != 2)
        return PyErr_Format(PyExc_ValueError, "an int64 has 1 or 2 halves, not %d", halves);
    if (get_vectors(objects, buffers, 3) < 0)
        return NULL;
    Form *form = PyMem_RawCalloc(1, sizeof *form);
    if (!form) {
        PyErr_NoMemory();
    } else {
        form->halves = halves;
        if (read_form(form, &buffers[0], &buffers[1], &buffers[2]) == 0) {
            Py_BEGIN_ALLOW_THREADS
            compute(form);
            Py_END_ALLOW_THREADS
            result = total_as_bytes(form);
        }
        wipe(form, sizeof *form);
        PyMem_RawFree(form);
    }
    for (int k = 0; k < 3; k++)
        PyBuffer_Release(&buffers[k]);
    return result;
}

#endif /* HAVE_KERNEL */

static int start_module(PyObject *module)
{
    if (PyModule_AddIntConstant(module, "INTERFACE", 1) < 0)
        return -1;
    return PyModule_AddIntConstant(module, "AVAILABLE", HAVE_KERNEL);
}

static PyMethodDef module_methods[] = {
#if HAVE_KERNEL
    {"bilinear_form", bilinear_form, METH_VARARGS,
     "The sum of rows[i] values[i, j] columns[j] as 32 bytes: values, columns, rows, halves."},
#endif
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, start_module},
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mpcfl.hazmat._dot",
    .m_doc = "Exact bilinear forms of integers; use mpcfl.hazmat.linear_tag.",
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__dot(void);

PyMODINIT_FUNC PyInit__dot(void) { return PyModuleDef_Init(&module_definition); }
