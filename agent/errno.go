package main

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// failure is an error as the node sees it: an errno's name, EPROTO or ENOUSER.
type failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Path    []byte `json:"path,omitempty"`
}

func (f *failure) Error() string { return f.Message }

var errChannelClosed = &failure{Code: "ECANCELED", Message: "the channel was closed"}

// protocol reports bad arguments of a request.
func protocol(format string, args ...any) error {
	return &failure{Code: "EPROTO", Message: fmt.Sprintf(format, args...)}
}

// failed says which path or thing an errno is about. A nil err gives nil.
func failed(err error, path string) error {
	if err == nil {
		return nil
	}
	f := *asFailure(err)
	if f.Path == nil && path != "" {
		f.Path = []byte(path)
		f.Message = fmt.Sprintf("%s: %s", path, f.Message)
	}
	return &f
}

// asFailure finds the errno behind an error.
func asFailure(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	var path *fs.PathError
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return &failure{Code: "EIO", Message: err.Error()}
	}
	f = &failure{Code: errnoName(errno), Message: errno.Error()}
	if errors.As(err, &path) {
		f.Path = []byte(path.Path)
		f.Message = fmt.Sprintf("%s: %s", path.Path, errno.Error())
	}
	return f
}

// asErrno takes the errno out of an error of the package os, without the path it adds.
func asErrno(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// hasCode tells whether err is a failure of that code.
func hasCode(err error, code string) bool {
	return err != nil && asFailure(err).Code == code
}

func errnoName(e syscall.Errno) string {
	if name, ok := errnoNames[e]; ok {
		return name
	}
	return fmt.Sprintf("E%d", int(e))
}

var errnoNames = map[syscall.Errno]string{
	syscall.EPERM: "EPERM", syscall.ENOENT: "ENOENT", syscall.ESRCH: "ESRCH", syscall.EINTR: "EINTR", syscall.EIO: "EIO",
	syscall.ENXIO: "ENXIO", syscall.E2BIG: "E2BIG", syscall.ENOEXEC: "ENOEXEC", syscall.EBADF: "EBADF", syscall.ECHILD: "ECHILD",
	syscall.EAGAIN: "EAGAIN", syscall.ENOMEM: "ENOMEM", syscall.EACCES: "EACCES", syscall.EFAULT: "EFAULT", syscall.EBUSY: "EBUSY",
	syscall.EEXIST: "EEXIST", syscall.EXDEV: "EXDEV", syscall.ENODEV: "ENODEV", syscall.ENOTDIR: "ENOTDIR", syscall.EISDIR: "EISDIR",
	syscall.EINVAL: "EINVAL", syscall.ENFILE: "ENFILE", syscall.EMFILE: "EMFILE", syscall.ENOTTY: "ENOTTY", syscall.ETXTBSY: "ETXTBSY",
	syscall.EFBIG: "EFBIG", syscall.ENOSPC: "ENOSPC", syscall.ESPIPE: "ESPIPE", syscall.EROFS: "EROFS", syscall.EMLINK: "EMLINK",
	syscall.EPIPE: "EPIPE", syscall.ERANGE: "ERANGE", syscall.EDEADLK: "EDEADLK", syscall.ENAMETOOLONG: "ENAMETOOLONG",
	syscall.ENOSYS: "ENOSYS", syscall.ENOTEMPTY: "ENOTEMPTY", syscall.ELOOP: "ELOOP", syscall.EPROTO: "EPROTO", syscall.EOVERFLOW: "EOVERFLOW",
	syscall.EOPNOTSUPP: "EOPNOTSUPP", syscall.EADDRINUSE: "EADDRINUSE", syscall.EADDRNOTAVAIL: "EADDRNOTAVAIL", syscall.ENETDOWN: "ENETDOWN",
	syscall.ENETUNREACH: "ENETUNREACH", syscall.ECONNABORTED: "ECONNABORTED", syscall.ECONNRESET: "ECONNRESET", syscall.ENOTCONN: "ENOTCONN",
	syscall.ETIMEDOUT: "ETIMEDOUT", syscall.ECONNREFUSED: "ECONNREFUSED", syscall.EHOSTUNREACH: "EHOSTUNREACH", syscall.EALREADY: "EALREADY",
	syscall.EINPROGRESS: "EINPROGRESS", syscall.ESTALE: "ESTALE", syscall.EDQUOT: "EDQUOT", syscall.ECANCELED: "ECANCELED",
	syscall.EAFNOSUPPORT: "EAFNOSUPPORT", syscall.ENOTSOCK: "ENOTSOCK", syscall.EMSGSIZE: "EMSGSIZE", syscall.ELIBBAD: "ELIBBAD",
}
