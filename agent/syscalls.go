package main

import (
	"syscall"
	"unsafe"
)

// What the package syscall lacks.
const (
	atFDCWD           = -100
	atSymlinkNoFollow = 0x100
	oPath             = 0x200000
	fSetPipeSize      = 1031
)

// setTimes sets access and modification time of a name, not following it when it is a link.
func setTimes(dir int, name string, atime, mtime syscall.Timespec) error {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	times := [2]syscall.Timespec{atime, mtime}
	_, _, errno := syscall.Syscall6(syscall.SYS_UTIMENSAT, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&times)), atSymlinkNoFollow, 0, 0)
	if errno != 0 {
		return failed(errno, name)
	}
	return nil
}
