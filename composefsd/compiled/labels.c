/* The walk that finds the label of every path, as an extension module: `composefsd.compiled._labels`.
 *
 * `labels.py` is its twin, tells what it does and has the same checks in the same order.  What is read comes from
 * images, which may be hostile: no number from a column is used as an index before it is compared with the length.
 * Nothing is kept between calls, and nothing is allocated but the answer.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

enum { STACK, FIRST, ORDER, NAMES, NAME_END, CHILD, KIND, LISTING, MOVES, RULES, LABELS, LETTER_AT, GIVEN, COLUMNS };

static const struct {
    const char *name;
    char type; /* of the elements, as in Python's `array` */
    int flags;
} COLUMN[COLUMNS] = {
    [STACK] = {"stack", 'I', PyBUF_WRITABLE},
    [FIRST] = {"first", 'I', 0},
    [ORDER] = {"order", 'I', 0},
    [NAMES] = {"names", 'B', 0},
    [NAME_END] = {"name_end", 'I', 0},
    [CHILD] = {"child", 'I', 0},
    [KIND] = {"kind", 'B', 0},
    [LISTING] = {"listing", 'I', 0},
    [MOVES] = {"moves", 'i', 0},
    [RULES] = {"rules", 'i', 0},
    [LABELS] = {"labels", 'i', 0},
    [LETTER_AT] = {"letter_at", 'B', 0},
    [GIVEN] = {"given", 'i', PyBUF_WRITABLE},
};

enum { DONE, UNKNOWN, CONFLICT, DEEPER }; /* labels.Stop */
enum { PLACE, END, BEFORE, READ, STATE, FRAME }; /* of a directory on the stack */
enum { BYTES = 256, LETTERS = 7, DIRECTORY = 0 };

typedef struct {
    Py_buffer view;
    uint64_t length; /* in elements; whatever is compared with it has 64 bits, so that sums and products fit */
} Column;

typedef struct {
    int why;
    Py_ssize_t depth;
    uint32_t state_or_entry;
    int32_t byte_or_label;
} Stop;

#define AT(type, which) ((type *)columns[which].view.buf)
#define LENGTH(which) (columns[which].length)

/* Go on to the next entry. */
static void
pass(uint32_t *frame)
{
    frame[PLACE]++;
    frame[READ] = 0;
    frame[STATE] = frame[BEFORE];
}

/* Answers with what is wrong with the columns, or NULL. */
static const char *
walk(const Column *columns, Stop *stop)
{
    uint32_t *const stack = AT(uint32_t, STACK);
    const uint32_t *const first = AT(const uint32_t, FIRST), *const order = AT(const uint32_t, ORDER);
    const uint32_t *const name_end = AT(const uint32_t, NAME_END), *const child = AT(const uint32_t, CHILD);
    const uint32_t *const listing = AT(const uint32_t, LISTING);
    const uint8_t *const names = AT(const uint8_t, NAMES), *const kinds = AT(const uint8_t, KIND);
    const uint8_t *const letter_at = AT(const uint8_t, LETTER_AT);
    const int32_t *const moves = AT(const int32_t, MOVES), *const rules = AT(const int32_t, RULES);
    const int32_t *const labels = AT(const int32_t, LABELS);
    int32_t *const given = AT(int32_t, GIVEN);

    if (stop->depth < 0 || (uint64_t)stop->depth > LENGTH(STACK) / FRAME)
        return "the stack is shorter than its depth";
    while (stop->depth > 0) {
        uint32_t *const frame = stack + FRAME * (stop->depth - 1);
        if (frame[PLACE] >= frame[END]) {
            stop->depth--;
            continue;
        }

        if (frame[PLACE] >= LENGTH(ORDER))
            return "a directory ends behind all entries";
        const uint32_t entry = order[frame[PLACE]];
        if (entry >= LENGTH(NAME_END) || entry >= LENGTH(CHILD))
            return "no such entry";
        const uint64_t start = entry == 0 ? 0 : name_end[entry - 1], end = name_end[entry];
        if (start > end || end > LENGTH(NAMES))
            return "a name ends where there is none";
        const uint32_t inode = child[entry];
        if (inode >= LENGTH(KIND) || inode >= LENGTH(LISTING) || inode >= LENGTH(GIVEN))
            return "no such inode";
        const uint8_t kind = kinds[inode];
        if (kind >= LENGTH(LETTER_AT) || letter_at[kind] >= LETTERS)
            return "no such kind";

        if (frame[READ] > end - start)
            return "more of a name is read than it has";
        uint32_t state = frame[STATE];
        for (uint64_t at = start + frame[READ]; at < end; at++) {
            const uint64_t place = (uint64_t)state * BYTES + names[at];
            if (place >= LENGTH(MOVES))
                return "no such state";
            if (moves[place] < 0) {
                frame[READ] = (uint32_t)(at - start);
                frame[STATE] = state;
                *stop = (Stop){UNKNOWN, stop->depth, state, names[at]};
                return NULL;
            }
            state = (uint32_t)moves[place];
        }
        frame[READ] = (uint32_t)(end - start);
        frame[STATE] = state;

        const uint64_t rule_at = (uint64_t)state * LETTERS + letter_at[kind];
        if (rule_at >= LENGTH(RULES))
            return "no such state";
        const int64_t rule = rules[rule_at] >= 0 ? rules[rule_at] : (int64_t)LENGTH(LABELS) + rules[rule_at];
        if (rule < 0 || (uint64_t)rule >= LENGTH(LABELS))
            return "no such rule";
        const int32_t label = labels[rule];
        if (label < 0)
            return "no such label";

        if (kind != DIRECTORY) {
            pass(frame);
            if (given[inode] < 0) {
                given[inode] = label;
            } else if (given[inode] != label) {
                *stop = (Stop){CONFLICT, stop->depth, entry, label};
                return NULL;
            }
            continue;
        }

        const uint64_t below = listing[inode];
        if (below + 1 >= LENGTH(FIRST))
            return "no such directory";
        if (given[inode] >= 0)
            return "a directory with two names";
        if (first[below] < first[below + 1]) {
            const uint64_t place = (uint64_t)state * BYTES + '/';
            if (place >= LENGTH(MOVES))
                return "no such state";
            if (moves[place] < 0) {
                *stop = (Stop){UNKNOWN, stop->depth, state, '/'};
                return NULL;
            }
            if ((uint64_t)stop->depth == LENGTH(STACK) / FRAME) {
                *stop = (Stop){DEEPER, stop->depth, 0, 0};
                return NULL;
            }
            const uint32_t after = (uint32_t)moves[place];
            const uint32_t new[FRAME] = {first[below], first[below + 1], after, 0, after};
            memcpy(frame + FRAME, new, sizeof new);
            stop->depth++;
        }
        pass(frame);
        given[inode] = label;
    }
    *stop = (Stop){DONE, 0, 0, 0};
    return NULL;
}

/* Whether `object` is a column of that type; if so, it has to be released.  With an exception, if not. */
static int
take(PyObject *object, int which, Column *column)
{
    const size_t size = COLUMN[which].type == 'B' ? 1 : 4;

    if (PyObject_GetBuffer(object, &column->view, PyBUF_ND | PyBUF_FORMAT | COLUMN[which].flags) < 0)
        return 0;
    const char *const format = column->view.format == NULL ? "B" : column->view.format;
    if (column->view.ndim != 1 || column->view.itemsize != (Py_ssize_t)size || format[0] != COLUMN[which].type ||
        format[1] != '\0') {
        PyErr_Format(PyExc_TypeError, "%s is no array of '%c'", COLUMN[which].name, COLUMN[which].type);
        PyBuffer_Release(&column->view);
        return 0;
    }
    column->length = (uint64_t)column->view.len / size;
    return 1;
}

static PyObject *
descend(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    Column columns[COLUMNS];
    int taken = 0;
    const char *wrong = NULL;
    Stop stop = {0};

    (void)module;
    if (count != COLUMNS + 1)
        return PyErr_Format(PyExc_TypeError, "descend() takes %d arguments, not %zd", COLUMNS + 1, count);
    stop.depth = PyLong_AsSsize_t(arguments[0]);
    if (stop.depth == -1 && PyErr_Occurred())
        return NULL;
    while (taken < COLUMNS && take(arguments[taken + 1], taken, &columns[taken]))
        taken++;
    if (taken == COLUMNS) {
        wrong = walk(columns, &stop);
        if (wrong != NULL)
            PyErr_SetString(PyExc_ValueError, wrong);
    }
    for (int which = 0; which < taken; which++)
        PyBuffer_Release(&columns[which].view);
    if (taken < COLUMNS || wrong != NULL)
        return NULL;
    return Py_BuildValue("inIi", stop.why, stop.depth, stop.state_or_entry, stop.byte_or_label);
}

static PyMethodDef METHODS[] = {
    {"descend", (PyCFunction)(void (*)(void))descend, METH_FASTCALL, PyDoc_STR("See composefsd.compiled.labels.")},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {{0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "composefsd.compiled._labels",
    .m_methods = METHODS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC
PyInit__labels(void)
{
    return PyModuleDef_Init(&MODULE);
}
