/* Counts up whenever the meaning or arguments of any function in this folder change. */
int finlora_kernels_version(void) { return 6; }
