/* Where a tensor's values lie, told by torch in one C call: the function of DLPack's exchange table (dlpack.h of DLPack
 * 1.2, https://github.com/dmlc/dlpack; torch has it since 2.10), of which what is used here is declared. An older torch
 * is asked through Python. */

typedef struct {
    void *data;
    int32_t device, device_number, n_dims;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
} Exchanged;

typedef struct {
    uint32_t major, minor;
    void *older;
    void *not_used[3];
    int (*tensor)(void *object, Exchanged *result); /* 0, or -1 with an error set */
} Exchange;

enum { EXCHANGE_MAJOR = 1, ON_CPU = 1, FLOAT_32 = 2 << 8 | 32, FLOAT_64 = 2 << 8 | 64 };

/* The table in a capsule; NULL, without an error, where there is none that is understood. */
static const Exchange *exchange_in(PyObject *capsule)
{
    if (!PyCapsule_IsValid(capsule, "dlpack_exchange_api"))
        return NULL;
    const Exchange *table = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    return table->major == EXCHANGE_MAJOR && table->tensor ? table : NULL;
}

/* Whether a tensor of torch has `numel` elements in row-major order on the CPU, and of this kind (code and bits of
 * DLPack as code << 8 | bits; -1: any); then also where. An error may be set where not. */
static int exchanged_lies_in_order(const Exchange *table, PyObject *tensor, long long numel, long long kind,
                                   long long *address)
{
    Exchanged found;
    if (table->tensor(tensor, &found) < 0 || found.device != ON_CPU || found.lanes != 1)
        return 0;
    if (kind >= 0 && kind != (found.code << 8 | found.bits))
        return 0;
    long long size = 1;
    for (int32_t d = 0; d < found.n_dims; d++)
        size *= found.shape[d];
    if (size != numel)
        return 0;
    long long stride = 1;
    for (int32_t d = found.n_dims; numel && d-- > 0; stride *= found.shape[d])
        if (found.shape[d] != 1 && found.strides[d] != stride)
            return 0;
    *address = (long long)(uintptr_t)found.data + (long long)found.offset;
    return 1;
}
