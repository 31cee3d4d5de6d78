package main

import (
	"fmt"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// What attributes are there.
const (
	sftpHasSize  = 1
	sftpHasOwner = 2
	sftpHasMode  = 4
	sftpHasTimes = 8
	sftpHasMore  = 1 << 31
)

// sftpWanted are the attributes of a request.
type sftpWanted struct {
	flags        uint32
	size         uint64
	uid, gid     uint32
	mode         uint32
	atime, mtime uint32
}

func (w *sftpWanted) has(flag uint32) bool { return w.flags&flag != 0 }

func (r *sftpRequest) attributes() *sftpWanted {
	w := &sftpWanted{flags: r.number()}
	if w.has(sftpHasSize) {
		w.size = r.long()
	}
	if w.has(sftpHasOwner) {
		w.uid, w.gid = r.number(), r.number()
	}
	if w.has(sftpHasMode) {
		w.mode = r.number()
	}
	if w.has(sftpHasTimes) {
		w.atime, w.mtime = r.number(), r.number()
	}
	if w.has(sftpHasMore) {
		for n := r.number(); n > 0 && !r.bad; n-- {
			r.text()
			r.text()
		}
	}
	return w
}

func (s *sftpServer) attributes(st *syscall.Stat_t) {
	s.number(sftpHasSize | sftpHasOwner | sftpHasMode | sftpHasTimes)
	s.long(uint64(st.Size))
	s.number(st.Uid)
	s.number(st.Gid)
	s.number(st.Mode)
	s.number(uint32(st.Atim.Sec))
	s.number(uint32(st.Mtim.Sec))
}

// sftpTarget is what attributes are set of: an open file or a path.
type sftpTarget struct {
	truncate func(int64) error
	chown    func(uid, gid int) error
	chmod    func(uint32) error
	times    func(atime, mtime uint32) error
}

func (w *sftpWanted) apply(to sftpTarget) error {
	if w.has(sftpHasSize) {
		if w.size > 1<<62 {
			return errSftpPacket
		}
		if err := to.truncate(int64(w.size)); err != nil {
			return err
		}
	}
	if w.has(sftpHasOwner) {
		if err := to.chown(int(w.uid), int(w.gid)); err != nil {
			return err
		}
	}
	// After the owner, since a new one takes the set-user-id bits away.
	if w.has(sftpHasMode) {
		if err := to.chmod(w.mode & 0o7777); err != nil {
			return err
		}
	}
	if w.has(sftpHasTimes) {
		return to.times(w.atime, w.mtime)
	}
	return nil
}

// setPath sets attributes of a path, behind links or not.
func setPath(r *sftpRequest, follow bool) error {
	name, wanted := r.name(), r.attributes()
	if r.bad {
		return errSftpPacket
	}
	to := sftpTarget{
		truncate: func(size int64) error { return syscall.Truncate(name, size) },
		chown:    func(uid, gid int) error { return syscall.Chown(name, uid, gid) },
		chmod:    func(mode uint32) error { return syscall.Chmod(name, mode) },
		times:    func(atime, mtime uint32) error { return setPathTimes(name, atime, mtime, 0) },
	}
	if !follow {
		to.chown = func(uid, gid int) error { return syscall.Lchown(name, uid, gid) }
		to.times = func(atime, mtime uint32) error { return setPathTimes(name, atime, mtime, atSymlinkNoFollow) }
		var st syscall.Stat_t
		if err := syscall.Lstat(name, &st); err != nil {
			return err
		}
		if st.Mode&syscall.S_IFMT == syscall.S_IFLNK {
			// A link has no mode and no size of its own to set.
			to.chmod = func(uint32) error { return nil }
			to.truncate = func(int64) error { return syscall.EINVAL }
		}
	}
	return wanted.apply(to)
}

func (s *sftpServer) fsetstat(_ uint32, r *sftpRequest) error {
	file, err := s.handle(r)
	if err != nil {
		return err
	}
	wanted := r.attributes()
	if r.bad {
		return errSftpPacket
	}
	fd := int(file.file.Fd())
	return wanted.apply(sftpTarget{
		truncate: func(size int64) error { return syscall.Ftruncate(fd, size) },
		chown:    func(uid, gid int) error { return syscall.Fchown(fd, uid, gid) },
		chmod:    func(mode uint32) error { return syscall.Fchmod(fd, mode) },
		times: func(atime, mtime uint32) error {
			return syscall.Futimes(fd, []syscall.Timeval{{Sec: int64(atime)}, {Sec: int64(mtime)}})
		},
	})
}

func setPathTimes(name string, atime, mtime uint32, flags uintptr) error {
	at, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	times := [2]syscall.Timespec{{Sec: int64(atime)}, {Sec: int64(mtime)}}
	here := atFDCWD // not a constant, which no uintptr could hold
	if _, _, errno := syscall.Syscall6(syscall.SYS_UTIMENSAT, uintptr(here), uintptr(unsafe.Pointer(at)), uintptr(unsafe.Pointer(&times)), flags, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// line is what `ls -l` would say: clients show it to people.
func (s *sftpServer) line(name string, st *syscall.Stat_t) string {
	owner, owners := strconv.Itoa(int(st.Uid)), strconv.Itoa(int(st.Gid))
	if known := s.names.of(s.names.users, passwd, st.Uid); known != nil {
		owner = *known
	}
	if known := s.names.of(s.names.groups, group, st.Gid); known != nil {
		owners = *known
	}
	at := time.Unix(st.Mtim.Sec, 0)
	when := at.Format("Jan _2 15:04")
	if age := time.Since(at); age > 182*24*time.Hour || age < -time.Hour {
		when = at.Format("Jan _2  2006")
	}
	return fmt.Sprintf("%s %4d %-8s %-8s %8d %s %s", modeText(st.Mode), st.Nlink, owner, owners, st.Size, when, name)
}

// modeText is a mode as `ls -l` writes it.
func modeText(mode uint32) string {
	kinds := map[uint32]byte{
		syscall.S_IFDIR: 'd', syscall.S_IFLNK: 'l', syscall.S_IFIFO: 'p', syscall.S_IFSOCK: 's', syscall.S_IFCHR: 'c', syscall.S_IFBLK: 'b',
	}
	text := []byte("-rwxrwxrwx")
	if kind, special := kinds[mode&syscall.S_IFMT]; special {
		text[0] = kind
	}
	for i := 0; i < 9; i++ {
		if mode&(1<<(8-i)) == 0 {
			text[1+i] = '-'
		}
	}
	for _, bit := range []struct {
		mask uint32
		at   int
		set  byte
	}{{syscall.S_ISUID, 3, 's'}, {syscall.S_ISGID, 6, 's'}, {syscall.S_ISVTX, 9, 't'}} {
		if mode&bit.mask == 0 {
			continue
		}
		if text[bit.at] == '-' {
			bit.set -= 'a' - 'A'
		}
		text[bit.at] = bit.set
	}
	return string(text)
}
