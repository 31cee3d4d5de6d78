package main

import (
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// sftpFile is an open file or directory.
type sftpFile struct {
	file    *os.File
	appends bool // writes go to the end, whatever they say
	listed  bool // of a directory: `.` and `..` have been told
}

type sftpOperation func(s *sftpServer, id uint32, r *sftpRequest) error

// sftpOperations are the requests. One that writes no answer is answered by its error, or that it was done.
var sftpOperations map[byte]sftpOperation

func init() {
	sftpOperations = map[byte]sftpOperation{
		sftpOpen:     (*sftpServer).open,
		sftpClose:    (*sftpServer).closeHandle,
		sftpRead:     (*sftpServer).read,
		sftpWrite:    (*sftpServer).write,
		sftpLstat:    func(s *sftpServer, id uint32, r *sftpRequest) error { return s.stat(id, r, syscall.Lstat) },
		sftpStat:     func(s *sftpServer, id uint32, r *sftpRequest) error { return s.stat(id, r, syscall.Stat) },
		sftpFstat:    (*sftpServer).fstat,
		sftpSetstat:  func(_ *sftpServer, _ uint32, r *sftpRequest) error { return setPath(r, true) },
		sftpFsetstat: (*sftpServer).fsetstat,
		sftpOpendir:  (*sftpServer).opendir,
		sftpReaddir:  (*sftpServer).readdir,
		sftpRemove:   onPath(syscall.Unlink),
		sftpRmdir:    onPath(syscall.Rmdir),
		sftpMkdir:    (*sftpServer).mkdir,
		sftpRealpath: (*sftpServer).realpath,
		sftpRename:   onPaths(func(from, to string) error { return rename(from, to, false) }),
		sftpReadlink: (*sftpServer).readlink,
		// OpenSSH's order, not the draft's: what it leads to, then its own name. Everybody follows.
		sftpSymlink:  onPaths(syscall.Symlink),
		sftpExtended: (*sftpServer).extended,
	}
}

func onPath(do func(string) error) sftpOperation {
	return func(_ *sftpServer, _ uint32, r *sftpRequest) error {
		name := r.name()
		if r.bad {
			return errSftpPacket
		}
		return do(name)
	}
}

func onPaths(do func(from, to string) error) sftpOperation {
	return func(_ *sftpServer, _ uint32, r *sftpRequest) error {
		from, to := r.name(), r.name()
		if r.bad {
			return errSftpPacket
		}
		return do(from, to)
	}
}

// Flags of an open.
const (
	sftpReads     = 1
	sftpWrites    = 2
	sftpAppends   = 4
	sftpCreates   = 8
	sftpTruncates = 16
	sftpExclusive = 32
)

func (s *sftpServer) open(id uint32, r *sftpRequest) error {
	name, wanted := r.name(), r.number()
	attributes := r.attributes()
	if r.bad {
		return errSftpPacket
	}
	flags := syscall.O_RDONLY
	switch wanted & (sftpReads | sftpWrites) {
	case sftpReads | sftpWrites:
		flags = syscall.O_RDWR
	case sftpWrites:
		flags = syscall.O_WRONLY
	}
	for bit, flag := range map[uint32]int{
		sftpAppends: syscall.O_APPEND, sftpCreates: syscall.O_CREAT, sftpTruncates: syscall.O_TRUNC, sftpExclusive: syscall.O_EXCL,
	} {
		if wanted&bit != 0 {
			flags |= flag
		}
	}
	mode := uint32(0o666)
	if attributes.has(sftpHasMode) {
		mode = attributes.mode & 0o7777
	}
	fd, err := syscall.Open(name, flags|syscall.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	return s.give(id, &sftpFile{file: os.NewFile(uintptr(fd), name), appends: wanted&sftpAppends != 0})
}

func (s *sftpServer) opendir(id uint32, r *sftpRequest) error {
	name := r.name()
	if r.bad {
		return errSftpPacket
	}
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return s.give(id, &sftpFile{file: os.NewFile(uintptr(fd), name)})
}

// give answers with a handle of the file.
func (s *sftpServer) give(id uint32, file *sftpFile) error {
	if len(s.handles) >= sftpHandles {
		file.file.Close()
		return syscall.EMFILE
	}
	s.next++
	s.handles[s.next] = file
	s.begin(sftpHandle)
	s.number(id)
	s.number(4)
	s.number(s.next)
	return nil
}

// handle is the open file that a request names.
func (s *sftpServer) handle(r *sftpRequest) (*sftpFile, error) {
	_, file, err := s.handleNumber(r)
	return file, err
}

func (s *sftpServer) handleNumber(r *sftpRequest) (uint32, *sftpFile, error) {
	inner := sftpRequest{rest: r.text()}
	number := inner.number()
	file := s.handles[number]
	if r.bad || inner.bad || file == nil {
		return 0, nil, syscall.EBADF
	}
	return number, file, nil
}

func (s *sftpServer) closeHandle(_ uint32, r *sftpRequest) error {
	number, file, err := s.handleNumber(r)
	if err != nil {
		return err
	}
	delete(s.handles, number)
	return file.file.Close()
}

func (s *sftpServer) read(id uint32, r *sftpRequest) error {
	file, err := s.handle(r)
	if err != nil {
		return err
	}
	offset, length := r.long(), int(min(r.number(), sftpData))
	if r.bad || offset > 1<<62 {
		return errSftpPacket
	}
	s.begin(sftpDataAnswer)
	s.number(id)
	s.number(0)
	head := len(s.answer)
	if cap(s.answer) < head+length {
		s.answer = append(make([]byte, 0, head+length), s.answer...)
	}
	n, err := file.file.ReadAt(s.answer[head:head+length], int64(offset))
	if errors.Is(err, syscall.ESPIPE) { // a pipe or a device has no places
		n, err = file.file.Read(s.answer[head : head+length])
	}
	if n == 0 && err != nil {
		return err
	}
	s.answer = s.answer[:head+n]
	s.answer[head-4], s.answer[head-3], s.answer[head-2], s.answer[head-1] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	return nil
}

func (s *sftpServer) write(_ uint32, r *sftpRequest) error {
	file, err := s.handle(r)
	if err != nil {
		return err
	}
	offset, data := r.long(), r.text()
	if r.bad || offset > 1<<62 {
		return errSftpPacket
	}
	if file.appends {
		_, err = file.file.Write(data)
		return err
	}
	_, err = file.file.WriteAt(data, int64(offset))
	if errors.Is(err, syscall.ESPIPE) {
		_, err = file.file.Write(data)
	}
	return err
}

func (s *sftpServer) stat(id uint32, r *sftpRequest, stat func(string, *syscall.Stat_t) error) error {
	name := r.name()
	if r.bad {
		return errSftpPacket
	}
	var st syscall.Stat_t
	if err := stat(name, &st); err != nil {
		return err
	}
	s.begin(sftpAttributes)
	s.number(id)
	s.attributes(&st)
	return nil
}

func (s *sftpServer) fstat(id uint32, r *sftpRequest) error {
	file, err := s.handle(r)
	if err != nil {
		return err
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(int(file.file.Fd()), &st); err != nil {
		return err
	}
	s.begin(sftpAttributes)
	s.number(id)
	s.attributes(&st)
	return nil
}

// readdir tells the next entries of a directory.
func (s *sftpServer) readdir(id uint32, r *sftpRequest) error {
	directory, err := s.handle(r)
	if err != nil {
		return err
	}
	var found []string
	if !directory.listed {
		directory.listed = true
		found = []string{".", ".."}
	}
	entries, err := directory.file.Readdirnames(100)
	found = append(found, entries...)
	if len(found) == 0 {
		if err == nil {
			err = io.EOF
		}
		return err
	}
	s.begin(sftpNames)
	s.number(id)
	count := len(s.answer)
	s.number(0)
	told := uint32(0)
	for _, name := range found {
		var st syscall.Stat_t
		if syscall.Lstat(directory.file.Name()+"/"+name, &st) != nil {
			continue // it is gone since
		}
		s.text([]byte(name))
		s.text([]byte(s.line(name, &st)))
		s.attributes(&st)
		told++
	}
	s.answer[count], s.answer[count+1], s.answer[count+2], s.answer[count+3] = byte(told>>24), byte(told>>16), byte(told>>8), byte(told)
	return nil
}

func (s *sftpServer) mkdir(_ uint32, r *sftpRequest) error {
	name, attributes := r.name(), r.attributes()
	if r.bad {
		return errSftpPacket
	}
	mode := uint32(0o777)
	if attributes.has(sftpHasMode) {
		mode = attributes.mode & 0o7777
	}
	return syscall.Mkdir(name, mode)
}

func (s *sftpServer) realpath(id uint32, r *sftpRequest) error {
	name := r.name()
	if r.bad {
		return errSftpPacket
	}
	return s.whole(id, name)
}

// whole answers with the absolute path of a name without links; its last part need not be there.
func (s *sftpServer) whole(id uint32, name string) error {
	at, err := filepath.Abs(name)
	if err != nil {
		return err
	}
	found, err := filepath.EvalSymlinks(at)
	if errors.Is(err, syscall.ENOENT) {
		if found, err = filepath.EvalSymlinks(path.Dir(at)); err == nil {
			found = path.Join(found, path.Base(at))
		}
	}
	if err != nil {
		return err
	}
	s.oneName(id, found)
	return nil
}

func (s *sftpServer) readlink(id uint32, r *sftpRequest) error {
	name := r.name()
	if r.bad {
		return errSftpPacket
	}
	target, err := os.Readlink(name)
	if err != nil {
		return err
	}
	s.oneName(id, target)
	return nil
}

func (s *sftpServer) oneName(id uint32, name string) {
	s.begin(sftpNames)
	s.number(id)
	s.number(1)
	s.text([]byte(name))
	s.text([]byte(name))
	s.number(0) // no attributes
}

func (s *sftpServer) extended(id uint32, r *sftpRequest) error {
	switch string(r.text()) {
	case "posix-rename@openssh.com":
		return onPaths(syscall.Rename)(s, id, r)
	case "hardlink@openssh.com":
		return onPaths(syscall.Link)(s, id, r)
	case "lsetstat@openssh.com":
		return setPath(r, false)
	case "fsync@openssh.com":
		file, err := s.handle(r)
		if err != nil {
			return err
		}
		return file.file.Sync()
	case "statvfs@openssh.com":
		name := r.name()
		if r.bad {
			return errSftpPacket
		}
		var st syscall.Statfs_t
		if err := syscall.Statfs(name, &st); err != nil {
			return err
		}
		s.fileSystem(id, &st)
		return nil
	case "fstatvfs@openssh.com":
		file, err := s.handle(r)
		if err != nil {
			return err
		}
		var st syscall.Statfs_t
		if err := syscall.Fstatfs(int(file.file.Fd()), &st); err != nil {
			return err
		}
		s.fileSystem(id, &st)
		return nil
	case "limits@openssh.com":
		s.begin(sftpExtendedReply)
		s.number(id)
		for _, limit := range []uint64{sftpPacket, sftpData, sftpData, sftpHandles} {
			s.long(limit)
		}
		return nil
	case "expand-path@openssh.com":
		name := r.name()
		if r.bad {
			return errSftpPacket
		}
		if rest, home := strings.CutPrefix(name, "~"); home {
			if rest != "" && rest[0] != '/' {
				user, below, _ := strings.Cut(rest, "/")
				who, err := lookUser(user)
				if err != nil {
					return syscall.ENOENT
				}
				return s.whole(id, path.Join(who.home, below))
			}
			name = path.Join(os.Getenv("HOME"), rest)
		}
		return s.whole(id, name)
	}
	return errSftpUnknown
}

func (s *sftpServer) fileSystem(id uint32, st *syscall.Statfs_t) {
	s.begin(sftpExtendedReply)
	s.number(id)
	for _, n := range []uint64{
		uint64(st.Bsize), uint64(st.Frsize), st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree, st.Ffree,
		uint64(uint32(st.Fsid.X__val[0]))<<32 | uint64(uint32(st.Fsid.X__val[1])), uint64(st.Flags) & 3, uint64(st.Namelen),
	} {
		s.long(n)
	}
}
