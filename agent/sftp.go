package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"syscall"
)

// sftpName is the name under which the agent's own program serves files by SFTP on its descriptors 0 and 1, so that no image needs a program for
// it. It runs as an ordinary process of the sandbox, as its user, and may do what that user may.
const sftpName = "sftp-server"

// SFTP is version 3 (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions, which is what every client speaks.
const (
	sftpVersion = 3
	sftpPacket  = 256 << 10         // bytes of a packet at most
	sftpData    = sftpPacket - 1024 // bytes of one read or write at most
	sftpHandles = 1024              // open files and directories at most
)

// Types of packets.
const (
	sftpInit          = 1
	sftpVersionAnswer = 2
	sftpOpen          = 3
	sftpClose         = 4
	sftpRead          = 5
	sftpWrite         = 6
	sftpLstat         = 7
	sftpFstat         = 8
	sftpSetstat       = 9
	sftpFsetstat      = 10
	sftpOpendir       = 11
	sftpReaddir       = 12
	sftpRemove        = 13
	sftpMkdir         = 14
	sftpRmdir         = 15
	sftpRealpath      = 16
	sftpStat          = 17
	sftpRename        = 18
	sftpReadlink      = 19
	sftpSymlink       = 20
	sftpStatus        = 101
	sftpHandle        = 102
	sftpDataAnswer    = 103
	sftpNames         = 104
	sftpAttributes    = 105
	sftpExtended      = 200
	sftpExtendedReply = 201
)

// Words of a status.
const (
	sftpOK          = 0
	sftpEOF         = 1
	sftpNoFile      = 2
	sftpDenied      = 3
	sftpFailure     = 4
	sftpBad         = 5
	sftpUnsupported = 8
)

// errSftpPacket is a request that ends within its fields, or has a text that no system call takes.
var errSftpPacket = errors.New("malformed request")

// errSftpUnknown is a request that this server does not know.
var errSftpUnknown = errors.New("not supported")

// sftpExtensions are told to the client, each with its version.
var sftpExtensions = [][2]string{
	{"posix-rename@openssh.com", "1"}, {"hardlink@openssh.com", "1"}, {"fsync@openssh.com", "1"}, {"lsetstat@openssh.com", "1"},
	{"statvfs@openssh.com", "2"}, {"fstatvfs@openssh.com", "2"}, {"limits@openssh.com", "1"}, {"expand-path@openssh.com", "1"},
}

// sftpServer serves one client.
type sftpServer struct {
	in      *bufio.Reader
	out     *bufio.Writer
	packet  []byte // of the request, used again by the next
	answer  []byte // of the answer
	handles map[uint32]*sftpFile
	next    uint32
	names   *names
}

// serveSftp ends with its input; its exit code is returned.
func serveSftp(in io.Reader, out io.Writer) int {
	if home := os.Getenv("HOME"); home != "" {
		_ = os.Chdir(home) // without one, relative names are those of the working directory
	}
	s := &sftpServer{in: bufio.NewReaderSize(in, sftpPacket), out: bufio.NewWriterSize(out, sftpPacket), handles: map[uint32]*sftpFile{}, names: newNames()}
	if err := s.run(); err != nil && !errors.Is(err, io.EOF) {
		os.Stderr.WriteString("sftp-server: " + err.Error() + "\n")
		return 1
	}
	return 0
}

func (s *sftpServer) run() error {
	greeted := false
	for {
		request, err := s.receive()
		if err != nil {
			return err
		}
		kind := request.byte()
		if !greeted {
			if kind != sftpInit {
				return errSftpPacket
			}
			greeted = true
			s.begin(sftpVersionAnswer)
			s.number(sftpVersion)
			for _, extension := range sftpExtensions {
				s.text([]byte(extension[0]))
				s.text([]byte(extension[1]))
			}
		} else {
			id := request.number()
			if request.bad {
				return errSftpPacket
			}
			s.serve(kind, id, request)
		}
		if err := s.send(); err != nil {
			return err
		}
	}
}

// serve writes the answer to one request.
func (s *sftpServer) serve(kind byte, id uint32, request *sftpRequest) {
	operation, known := sftpOperations[kind]
	err := errSftpUnknown
	if known {
		// The operation begins the answer, unless it is just a status.
		s.answer = s.answer[:0]
		err = operation(s, id, request)
		if request.bad {
			err = errSftpPacket
		}
	}
	if err != nil || len(s.answer) == 0 {
		s.begin(sftpStatus)
		s.number(id)
		code, message := sftpCode(err)
		s.number(code)
		s.text([]byte(message))
		s.text(nil) // the message's language
	}
}

// sftpCode says an error in the words of the protocol, which has few.
func sftpCode(err error) (uint32, string) {
	var errno syscall.Errno
	switch {
	case err == nil:
		return sftpOK, "Success"
	case errors.Is(err, io.EOF):
		return sftpEOF, "End of file"
	case errors.Is(err, errSftpUnknown):
		return sftpUnsupported, "Operation unsupported"
	case errors.Is(err, errSftpPacket):
		return sftpBad, "Bad message"
	case !errors.As(err, &errno):
		return sftpFailure, err.Error()
	}
	switch errno {
	case syscall.ENOENT, syscall.ENOTDIR, syscall.EBADF, syscall.ELOOP:
		return sftpNoFile, errno.Error()
	case syscall.EPERM, syscall.EACCES, syscall.EFAULT:
		return sftpDenied, errno.Error()
	case syscall.EINVAL, syscall.ENAMETOOLONG:
		return sftpBad, errno.Error()
	case syscall.ENOSYS, syscall.ENOTSUP:
		return sftpUnsupported, errno.Error()
	}
	return sftpFailure, errno.Error()
}

// receive reads the next packet. It is valid until the one after it.
func (s *sftpServer) receive() (*sftpRequest, error) {
	// Answers wait for as long as there are requests: one wake for many.
	if s.in.Buffered() < 4 {
		if err := s.out.Flush(); err != nil {
			return nil, err
		}
	}
	var length [4]byte
	if _, err := io.ReadFull(s.in, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(length[:]))
	if n < 1 || n > sftpPacket {
		return nil, errSftpPacket
	}
	if s.in.Buffered() < n {
		if err := s.out.Flush(); err != nil {
			return nil, err
		}
	}
	if cap(s.packet) < n {
		s.packet = make([]byte, max(n, 64<<10))
	}
	s.packet = s.packet[:n]
	if _, err := io.ReadFull(s.in, s.packet); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return &sftpRequest{rest: s.packet}, nil
}

func (s *sftpServer) send() error {
	binary.BigEndian.PutUint32(s.answer, uint32(len(s.answer)-4))
	_, err := s.out.Write(s.answer)
	return err
}

func (s *sftpServer) begin(kind byte) { s.answer = append(s.answer[:0], 0, 0, 0, 0, kind) }
func (s *sftpServer) number(n uint32) { s.answer = binary.BigEndian.AppendUint32(s.answer, n) }
func (s *sftpServer) long(n uint64)   { s.answer = binary.BigEndian.AppendUint64(s.answer, n) }
func (s *sftpServer) text(text []byte) {
	s.number(uint32(len(text)))
	s.answer = append(s.answer, text...)
}

// sftpRequest takes a packet apart. bad is set, and zeros are given, when it ends too soon.
type sftpRequest struct {
	rest []byte
	bad  bool
}

func (r *sftpRequest) take(n int) []byte {
	if n < 0 || n > len(r.rest) {
		r.bad = true
		r.rest = nil
		return nil
	}
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *sftpRequest) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *sftpRequest) number() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *sftpRequest) long() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *sftpRequest) text() []byte { return r.take(int(r.number())) }

// name is a path; the empty one is the working directory.
func (r *sftpRequest) name() string {
	name := string(r.text())
	if name == "" {
		return "."
	}
	for i := 0; i < len(name); i++ {
		if name[i] == 0 {
			r.bad = true
			return "."
		}
	}
	return name
}
