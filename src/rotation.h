/*-------------------------------------------------------------------------
 *
 * rotation.h
 *	  Key rotation's setting.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ROTATION_H
#define ROTATION_H

extern void RotationInit(void);

#endif							/* ROTATION_H */
