/*-------------------------------------------------------------------------
 *
 * fuzz_fernet.c
 *	  Feeds the codec: tokens and keys of any form, tokens that are signed
 *	  whatever they contain, and messages on their way there and back, alone
 *	  and together.
 *
 * Every buffer is as large as the codec may use and no larger, so that the
 * address sanitizer sees a byte too many.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe.h"

#include "../unit/ciphers.h"

#define HEADER_LEN 25			/* version, timestamp, IV */

extern int	LLVMFuzzerInitialize(int *argc, char ***argv);
extern int	LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

static const FernetKey key = {"0123456789abcdef", "ghijklmnopqrstuv"};
static const FernetKey other_key = {"0123456789abcdeF", "ghijklmnopqrstuv"};
static TestCipher cipher;
static TestCipher other_cipher;

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
open_token(const char *text, size_t len, TestCipher *with,
		   FernetStatus *status, size_t *message_len)
{
	char	   *bytes = copy(text, len);
	FernetStatus opened;
	FernetToken token;

	*status = FernetDecode(bytes, len, (uint8 *) bytes, &token);
	if (*status == FERNET_OK)
	{
		size_t		max_len = FernetMaxMessageLen(&token);
		FernetStatus age = FernetCheckAge(&token, 1700000000, 3600);

		require(FernetStatusText(age)[0] != '\0', "an age has a text");
		*status = FernetVerify(&token, &with->methods);
		opened = FernetOpen(&token, &with->methods);
		require(opened == *status,
				"what is verified, and nothing else, can be opened");
		*message_len = token.message_len;
		require(opened != FERNET_OK ||
				(*message_len <= max_len && *message_len + 15 >= max_len),
				"the message has a length that was announced");
	}
	require(FernetStatusText(*status)[0] != '\0', "a status has a text");
	if (*status == FERNET_OK)
		return (uint8 *) bytes;
	free(bytes);
	return NULL;
}

/* Any text. */
static void
test_text(const uint8 *data, size_t size)
{
	FernetStatus status;
	size_t		len;
	FernetKey	read;
	char		text[FERNET_KEY_TEXT_LEN];

	free(open_token((const char *) data, size, &cipher, &status, &len));
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
	size_t		nbytes = size + 1 + FERNET_MAC_LEN;
	size_t		len = (nbytes + 2) / 3 * 4;
	uint8	   *bytes = malloc(nbytes + 2);
	char	   *text = malloc(len);
	FernetStatus status;
	size_t		message_len;

	require(bytes != NULL && text != NULL, "there is memory");
	bytes[0] = 0x80;
	if (size > 0)
		memcpy(bytes + 1, data, size);
	require(cipher.methods.hmac_init(&cipher) &&
			cipher.methods.hmac_update(&cipher, bytes, size + 1) &&
			cipher.methods.hmac_final(&cipher, bytes + size + 1), "HMAC works");
	bytes[nbytes] = bytes[nbytes + 1] = 0;
	for (size_t i = 0; i < nbytes; i += 3)
	{
		uint32		group = (uint32) bytes[i] << 16 | bytes[i + 1] << 8 | bytes[i + 2];

		for (int place = 0; place < 4; place++)
			text[i / 3 * 4 + place] = digits[group >> (18 - 6 * place) & 63];
	}
	for (size_t i = nbytes; i % 3 != 0; i++)
		text[len - 1 - (i - nbytes)] = '=';

	free(open_token(text, len, &cipher, &status, &message_len));
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
	require(FernetSeal(&cipher.methods, timestamp, iv, message, len, token) == FERNET_OK,
			"every message can be sealed");

	got = open_token(token, token_len, &cipher, &status, &got_len);
	require(got != NULL && got_len == len && memcmp(got, message, len) == 0,
			"what was sealed opens");
	free(got);
	got = open_token(token, token_len, &other_cipher, &status, &got_len);
	require(got == NULL && status == FERNET_BAD_MAC, "but not with another key");

	token[timestamp % token_len] ^= 1 << (iv[0] % 8);
	got = open_token(token, token_len, &cipher, &status, &got_len);
	require(got == NULL && status != FERNET_OK, "and not with a bit changed");
	free(token);
	free(message);
}

/*
 * Messages of any lengths, sealed and opened together, as rotation does it, and
 * one of the calls of the cipher perhaps failing.
 */
static void
test_many(const uint8 *data, size_t size)
{
	FernetMessage messages[16];
	FernetToken decoded[16];
	FernetToken *tokens[16];
	uint8	   *bytes[16];
	int			nmessages;
	FernetStatus status;

	if (size < 2)
		return;
	nmessages = data[0] % 17;
	cipher.fails_after = data[1] < 64 ? data[1] : -1;
	data += 2;
	size -= 2;
	for (int i = 0; i < nmessages; i++)
	{
		size_t		len = size > 0 ? Min(data[0], size - 1) : 0;

		if (len == 255)
			len = size - 1;
		messages[i].len = len;
		messages[i].bytes = copy(data + (size > 0), len);
		messages[i].timestamp = i;
		memset(messages[i].seed, i, FERNET_IV_LEN);
		messages[i].token = malloc(FernetTokenLen(len));
		require(messages[i].token != NULL, "there is memory");
		data += len + (size > 0);
		size -= len + (size > 0);
	}

	status = FernetSealMany(&cipher.methods, messages, nmessages);
	require(status == FERNET_OK ||
			(status == FERNET_CIPHER_FAILED && cipher.fails_after == 0),
			"many can be sealed");
	for (int i = 0; i < nmessages && status == FERNET_OK; i++)
	{
		size_t		len = FernetTokenLen(messages[i].len);

		bytes[i] = malloc(FernetDecodedLen(len));
		require(bytes[i] != NULL, "there is memory");
		require(FernetDecode(messages[i].token, len, bytes[i], &decoded[i]) ==
				FERNET_OK, "what was sealed is a token");
		tokens[i] = &decoded[i];
	}
	if (status == FERNET_OK)
	{
		status = FernetDecryptMany(tokens, nmessages, &cipher.methods);
		require(status == FERNET_OK ||
				(status == FERNET_CIPHER_FAILED && cipher.fails_after == 0),
				"many can be opened");
		for (int i = 0; i < nmessages; i++)
		{
			require(status != FERNET_OK ||
					(decoded[i].status == FERNET_OK &&
					 decoded[i].message_len == messages[i].len &&
					 memcmp(bytes[i], messages[i].bytes, messages[i].len) == 0),
					"what was sealed opens");
			free(bytes[i]);
		}
	}
	cipher.fails_after = -1;
	for (int i = 0; i < nmessages; i++)
	{
		free((void *) messages[i].bytes);
		free(messages[i].token);
	}
}

int
LLVMFuzzerInitialize(int *argc pg_attribute_unused(),
					 char ***argv pg_attribute_unused())
{
	TestCipherInit(&cipher, &key);
	TestCipherInit(&other_cipher, &other_key);
	return 0;
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	uint8	   *rest;

	if (size == 0)
		return 0;
	rest = copy(data + 1, size - 1);
	switch (data[0] % 4)
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
		case 3:
			test_many(rest, size - 1);
			break;
	}
	free(rest);
	return 0;
}
