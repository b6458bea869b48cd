/* Stands for CUDA's libraries in the folders of Python wheels: made twice, the second needs the
 * first, as one wheel's library needs another's. */
int TSR_WHEEL_NAME(void);

#ifdef TSR_WHEEL_NEEDS
int TSR_WHEEL_NEEDS(void);

int TSR_WHEEL_NAME(void)
{
    return 10 * TSR_WHEEL_NEEDS() + 1;
}
#else
int TSR_WHEEL_NAME(void)
{
    return 4;
}
#endif
