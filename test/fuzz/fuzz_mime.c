/*-------------------------------------------------------------------------
 *
 * fuzz_mime.c
 *	  libFuzzer target for the check of MIME types.
 *
 * What the check takes must be safe in a header: visible ASCII and spaces, a
 * slash before anything else that is no token character, and no quote that is
 * left open.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe.h"

#include "mime.h"

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *) data;
	bool		quoted = false;
	size_t		slash = 0;

	if (!MimeTypeIsValid(text, size))
		return 0;
	for (size_t i = 0; i < size; i++)
	{
		if (data[i] < ' ' || data[i] > '~')
			abort();
		if (quoted && data[i] == '\\')
			i++;
		else if (data[i] == '"')
			quoted = !quoted;
	}
	while (slash < size && data[slash] != '/')
		slash++;
	if (quoted || slash == 0 || slash + 1 >= size)
		abort();

	/* a part of a type is none */
	if (MimeTypeIsValid(text, slash))
		abort();
	return 0;
}
