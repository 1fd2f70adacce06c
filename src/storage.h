/*-------------------------------------------------------------------------
 *
 * storage.h
 *	  Set, get, delete, list and count entries.
 *
 *-------------------------------------------------------------------------
 */
#ifndef STORAGE_H
#define STORAGE_H

extern void StorageInit(void);

#endif							/* STORAGE_H */
