/*-------------------------------------------------------------------------
 *
 * storage.h
 *	  Set, rename and delete entries.
 *
 *-------------------------------------------------------------------------
 */
#ifndef STORAGE_H
#define STORAGE_H

extern void StorageInit(void);

#endif							/* STORAGE_H */
