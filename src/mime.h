/*-------------------------------------------------------------------------
 *
 * mime.h
 *	  MIME types.
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIME_H
#define MIME_H

extern bool MimeTypeIsValid(const char *text, size_t len);

#endif							/* MIME_H */
