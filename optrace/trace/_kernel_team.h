/* The threads of the program's own OpenMP runtime, for measuring: they are there already, and since they spin for a while
 * after each parallel region, threads of ours would share their cores with them.
 *
 * A Python thread joins by join_team(address of GOMP_parallel) once it has been through a region of that runtime: then it
 * has a team, and using it leaves nothing behind that was not there. A fork keeps one thread only, so the child leaves. */

#define TEAM_FROM (256 << 10) /* bytes of a call */
#define TEAM_TENSOR 32768     /* elements of its largest tensor: from there on torch goes over it in parallel */

typedef void Parallel(void (*)(void *), void *, unsigned, unsigned);
static _Thread_local Parallel *team;

static PyObject *join_team(PyObject *module, PyObject *address)
{
    (void)module;
    void *given = PyLong_AsVoidPtr(address);
    if (!given && PyErr_Occurred())
        return NULL;
    memcpy(&team, &given, sizeof team);
    Py_RETURN_NONE;
}

static void leave_team(void)
{
    team = NULL;
}

typedef struct {
    void *(*work)(void *);
    void *argument;
} Share;

static void do_share(void *share)
{
    const Share *mine = share;
    mine->work(mine->argument);
}

/* Runs `work` in up to `threads` threads of the team, the caller's among them. */
static void in_team(void *(*work)(void *), void *argument, int threads)
{
    Share share = {work, argument};
    team(do_share, &share, (unsigned)threads, 0);
}
