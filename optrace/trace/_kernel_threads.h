/* Threads that live for one call only, and the way floats are computed in it. */

/* Rounding to nearest and no flushing of subnormals, whatever the caller has set; returns what it had. */
static uint64_t plain_floats(void)
{
    uint64_t before = 0;
#if defined(__x86_64__)
    before = _mm_getcsr();
    _mm_setcsr(0x1F80);
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(UINT64_C(0)));
#endif
    return before;
}

static void restore_floats(uint64_t before)
{
#if defined(__x86_64__)
    _mm_setcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
#else
    (void)before;
#endif
}

/* Runs `work` in up to `threads` threads, the caller's among them, which end before it returns: nothing is left for a
 * fork to lose. Where no thread can be had, the caller does it all. */
static void in_threads(void *(*work)(void *), void *argument, int threads)
{
    pthread_t others[MAX_THREADS];
    int started = 0;
    sigset_t all, mask;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    while (started < threads - 1 && pthread_create(&others[started], NULL, work, argument) == 0)
        started++;
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    work(argument);
    for (int t = 0; t < started; t++)
        pthread_join(others[t], NULL);
}
