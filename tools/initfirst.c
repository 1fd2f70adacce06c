/*
 * Starts the address sanitizer early.  It starts on the first malloc(), which
 * in the constructor of libgpg-error would spoil a lock that is held there;
 * linked with -z initfirst and preloaded, this library is initialized before
 * all others.
 */
#include <stdlib.h>

__attribute__((constructor))
static void
start(void)
{
	free(malloc(1));
}
