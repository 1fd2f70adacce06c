/*-------------------------------------------------------------------------
 *
 * encoding.h
 *	  Conversion between UTF-8 and the database encoding.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ENCODING_H
#define ENCODING_H

extern char *ConvertUtf8(const char *text, size_t len, bool to_server);

#endif							/* ENCODING_H */
