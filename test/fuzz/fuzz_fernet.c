/*-------------------------------------------------------------------------
 *
 * fuzz_fernet.c
 *	  Feeds the codec: tokens and keys of any form, tokens that are signed
 *	  whatever they contain, and messages on their way there and back.
 *
 * Every buffer is as large as the codec may use and no larger, so that the
 * address sanitizer sees a byte too many.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe.h"

#include "fernet.h"

#define HEADER_LEN 25			/* version, timestamp, IV */
#define MAC_LEN 32

extern int	LLVMFuzzerInitialize(int *argc, char ***argv);
extern int	LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

static const FernetKey key = {"0123456789abcdef", "ghijklmnopqrstuv"};
static const FernetKey other_key = {"0123456789abcdeF", "ghijklmnopqrstuv"};
static FernetContext context;
static FernetContext other_context;

static void
require(bool condition, const char *what)
{
	if (condition)
		return;
	fprintf(stderr, "not so: %s\n", what);
	abort();
}

static void *
copy(const void *data, size_t size)
{
	char	   *result = malloc(Max(size, 1));

	require(result != NULL, "there is memory");
	if (size > 0)
		memcpy(result, data, size);
	return result;
}

/*
 * Does with the text of a token what get does.  If it is valid, the message
 * must be no longer than FernetMaxMessageLen says.  Returns it as malloc'd
 * memory, or NULL.
 */
static uint8 *
open_token(const char *text, size_t len, const FernetContext *with,
		   FernetStatus *status, size_t *message_len)
{
	char	   *bytes = copy(text, len);
	uint8	   *message = NULL;
	size_t		opened_len;
	FernetToken token;

	*status = FernetDecode(bytes, len, (uint8 *) bytes, &token);
	if (*status == FERNET_OK)
		*status = FernetVerify(&token, with, message_len);
	if (*status == FERNET_OK)
	{
		size_t		max_len = FernetMaxMessageLen(&token);
		FernetStatus age = FernetCheckAge(&token, 1700000000, 3600);

		require(*message_len <= max_len && *message_len + 15 >= max_len,
				"the message has a length that was announced");
		require(FernetStatusText(age)[0] != '\0', "an age has a text");
		message = malloc(max_len + 1);
		require(message != NULL, "there is memory");
		require(FernetOpen(&token, with, message, &opened_len) == FERNET_OK &&
				opened_len == *message_len, "what is verified can be opened");
		/* in place, as the server does it */
		require(FernetOpen(&token, with, (uint8 *) bytes,
						   &opened_len) == FERNET_OK &&
				opened_len == *message_len &&
				memcmp(message, bytes, *message_len) == 0,
				"decryption in place gives the same");
	}
	else if (*status != FERNET_BAD_BASE64 && *status != FERNET_BAD_FORMAT)
		require(FernetOpen(&token, with, (uint8 *) bytes,
						   &opened_len) == *status,
				"what is not verified cannot be opened");
	require(FernetStatusText(*status)[0] != '\0', "a status has a text");
	free(bytes);
	return message;
}

/* Any text. */
static void
test_text(const uint8 *data, size_t size)
{
	FernetStatus status;
	size_t		len;
	FernetKey	read;
	char		text[FERNET_KEY_TEXT_LEN];

	free(open_token((const char *) data, size, &context, &status, &len));
	if (FernetKeyFromText((const char *) data, size, &read) == FERNET_OK)
	{
		FernetKeyToText(&read, text);
		require(size == FERNET_KEY_TEXT_LEN && memcmp(text, data, size) == 0,
				"a key has one spelling");
	}
}

/* Base64url of bytes that are signed, whatever they are. */
static void
test_signed(const uint8 *data, size_t size)
{
	static const char digits[] =
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
	size_t		nbytes = size + 1 + MAC_LEN;
	size_t		len = (nbytes + 2) / 3 * 4;
	uint8	   *bytes = malloc(nbytes + 2);
	char	   *text = malloc(len);
	FernetStatus status;
	size_t		message_len;

	require(bytes != NULL && text != NULL, "there is memory");
	bytes[0] = 0x80;
	if (size > 0)
		memcpy(bytes + 1, data, size);
	require(HMAC(EVP_sha256(), key.signing, sizeof(key.signing), bytes, size + 1,
				 bytes + size + 1, NULL) != NULL, "HMAC works");
	bytes[nbytes] = bytes[nbytes + 1] = 0;
	for (size_t i = 0; i < nbytes; i += 3)
	{
		uint32		group = (uint32) bytes[i] << 16 | bytes[i + 1] << 8 | bytes[i + 2];

		for (int place = 0; place < 4; place++)
			text[i / 3 * 4 + place] = digits[group >> (18 - 6 * place) & 63];
	}
	for (size_t i = nbytes; i % 3 != 0; i++)
		text[len - 1 - (i - nbytes)] = '=';

	free(open_token(text, len, &context, &status, &message_len));
	if (size + 1 < HEADER_LEN + 16 || (size + 1 - HEADER_LEN) % 16 != 0)
		require(status == FERNET_BAD_FORMAT, "a token is whole blocks");
	else
		require(status == FERNET_OK || status == FERNET_BAD_PADDING,
				"what is signed is good, but for its padding");
	free(text);
	free(bytes);
}

/*
 * A message, repeated to fill several pieces, there and back; then with one
 * bit changed.
 */
static void
test_message(const uint8 *data, size_t size)
{
	uint8		iv[FERNET_IV_LEN] = {0};
	uint64		timestamp;
	size_t		repeat;
	size_t		len;
	size_t		token_len;
	size_t		got_len;
	uint8	   *message;
	uint8	   *got;
	char	   *token;
	FernetStatus status;

	if (size < 12)
		return;
	memcpy(&timestamp, data, 8);
	repeat = data[9] == 0 ? data[8] : 1;	/* seldom: long ones are slow */
	memcpy(iv, data + 8, 4);
	data += 12;
	size -= 12;

	len = Min(size * repeat, 30000);
	message = malloc(Max(len, 1));
	require(message != NULL, "there is memory");
	for (size_t i = 0; i < len; i += size)
		memcpy(message + i, data, Min(size, len - i));
	token_len = FernetTokenLen(len);
	token = malloc(token_len);
	require(token != NULL, "there is memory");
	require(FernetSeal(&context, timestamp, iv, message, len, token) == FERNET_OK,
			"every message can be sealed");

	got = open_token(token, token_len, &context, &status, &got_len);
	require(got != NULL && got_len == len && memcmp(got, message, len) == 0,
			"what was sealed opens");
	free(got);
	got = open_token(token, token_len, &other_context, &status, &got_len);
	require(got == NULL && status == FERNET_BAD_MAC, "but not with another key");

	token[timestamp % token_len] ^= 1 << (iv[0] % 8);
	got = open_token(token, token_len, &context, &status, &got_len);
	require(got == NULL && status != FERNET_OK, "and not with a bit changed");
	free(token);
	free(message);
}

int
LLVMFuzzerInitialize(int *argc pg_attribute_unused(),
					 char ***argv pg_attribute_unused())
{
	require(FernetPrepare(&context, &key) == FERNET_OK &&
			FernetPrepare(&other_context, &other_key) == FERNET_OK,
			"keys can be prepared");
	return 0;
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	uint8	   *rest;

	if (size == 0)
		return 0;
	rest = copy(data + 1, size - 1);
	switch (data[0] % 3)
	{
		case 0:
			test_text(rest, size - 1);
			break;
		case 1:
			test_signed(rest, size - 1);
			break;
		case 2:
			test_message(rest, size - 1);
			break;
	}
	free(rest);
	return 0;
}
