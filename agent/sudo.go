package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// sudoAddress is where the agent listens for its own binary run as sudo: an abstract socket, so that it is found from any root directory.
const sudoAddress = "@corral-sudo"

// sudoLimit is how many commands may run by sudo at once.
const sudoLimit = 64

// sudoRequest is the first packet of a connection. With it come the caller's descriptors 0, 1, 2 and its working directory.
type sudoRequest struct {
	User       string   `json:"user"` // name or number, with :group; empty is root
	Argv       [][]byte `json:"argv"` // empty with shell or login for an interactive one
	Shell      bool     `json:"shell"`
	Login      bool     `json:"login"`
	Env        [][]byte `json:"env"`        // what the caller's environment adds
	Background bool     `json:"background"` // the command outlives its client
	Terminal   bool     `json:"terminal"`   // one of the descriptors is a fresh terminal, to become the controlling one
	Caller     caller   `json:"caller"`
}

// caller is who runs sudo, in its own words: gVisor 20240729 answers SO_PEERCRED with the asking process itself. Nothing is decided by it, since
// everybody may run everything; it fills SUDO_USER and tells which process' tree the command belongs to.
type caller struct {
	PID int `json:"pid"`
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// sudoReply is the answer, first with pid or error, then with the end.
type sudoReply struct {
	PID    int      `json:"pid,omitempty"`
	Error  *failure `json:"error,omitempty"`
	Code   *int     `json:"code,omitempty"`
	Signal *int     `json:"signal,omitempty"`
}

// sudoSignal is what the client sends while the command runs.
type sudoSignal struct {
	Signal int `json:"signal"`
}

// sudoListener is opened at birth and used or closed by the claim.
var sudoListener *os.File

// allowSudo makes `sudo` the agent's own. Programs with the set-user-id bit gain nothing in gVisor 20240729, so a real one could not work.
func allowSudo(allowed bool) error {
	const at = "/usr/bin/sudo"
	if !allowed {
		return sudoListener.Close() // callers are refused from now on
	}
	go serveSudo(sudoListener)
	// A link, so that the writable layer keeps no copy and one started without sudo has none.
	err := syscall.Symlink(agentCopy, at)
	if err == syscall.EEXIST {
		if target, e := os.Readlink(at); e == nil && target == agentCopy {
			return nil
		}
		err = syscall.Mount(agentCopy, at, "", syscall.MS_BIND, "") // over the image's own
	}
	if err == syscall.ENOENT { // an image without /usr/bin has nobody who looks there
		return nil
	}
	return failed(err, at)
}

func listenSudo() (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, failed(err, "sudo")
	}
	err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: sudoAddress})
	if err == nil {
		err = syscall.Listen(fd, sudoLimit)
	}
	if err != nil {
		syscall.Close(fd)
		return nil, failed(err, "sudo")
	}
	return os.NewFile(uintptr(fd), "sudo"), nil
}

func serveSudo(listener *os.File) {
	raw, err := listener.SyscallConn()
	if err != nil {
		logf("sudo: %v", err)
		return
	}
	slots := make(chan struct{}, sudoLimit)
	for {
		fd := -1
		err := raw.Read(func(l uintptr) bool {
			var e error
			fd, _, e = syscall.Accept4(int(l), syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
			return e != syscall.EAGAIN
		})
		if err != nil {
			logf("sudo: %v", err)
			return
		}
		if fd < 0 {
			continue // the caller is gone again
		}
		s := &sudoSession{socket: os.NewFile(uintptr(fd), "sudo")}
		select {
		case slots <- struct{}{}:
			go func() {
				defer func() { <-slots }()
				s.run()
			}()
		default:
			s.send(sudoReply{Error: &failure{Code: "EAGAIN", Message: "64 commands run by sudo already"}})
			s.socket.Close()
		}
	}
}

// sudoSession is one run of sudo.
type sudoSession struct {
	socket     *os.File
	child      child
	background bool
	over       sync.WaitGroup
}

func (s *sudoSession) run() {
	defer s.socket.Close()
	if err := s.start(); err != nil {
		s.send(sudoReply{Error: asFailure(err)})
		return
	}
	s.send(sudoReply{PID: s.child.pid})
	for {
		packet := make([]byte, 1024)
		n, err := s.socket.Read(packet)
		if err != nil {
			if errors.Is(err, io.EOF) && !s.background { // the client is gone, or was sent the end and left
				_ = children.signal(&s.child, syscall.SIGHUP)
			}
			break
		}
		var request sudoSignal
		if json.Unmarshal(packet[:n], &request) != nil || request.Signal < 1 || request.Signal > 64 {
			break
		}
		_ = children.signal(&s.child, syscall.Signal(request.Signal)) // ESRCH: it ends anyway
	}
	s.over.Wait()
}

// start runs the command with the descriptors that came along.
func (s *sudoSession) start() error {
	packet, files, err := receiveFiles(s.socket, 4)
	defer func() {
		for _, fd := range files {
			syscall.Close(fd)
		}
	}()
	if err != nil {
		return err
	}
	var request sudoRequest
	if err := json.Unmarshal(packet, &request); err != nil || len(files) != 4 {
		return protocol("sudo needs a request with four descriptors")
	}
	s.background = request.Background
	c, err := request.command("/proc/self/fd/" + strconv.Itoa(files[3]))
	if err != nil {
		return err
	}
	s.child.ended = func(e end) {
		defer s.over.Done()
		var reply sudoReply
		if e.status.Signaled() {
			n := int(e.status.Signal())
			reply.Signal = &n
		} else {
			n := e.status.ExitStatus()
			reply.Code = &n
		}
		s.send(reply)
	}
	// The command belongs to the process that sudo was called from, and ends with it.
	var group *treeGroup
	if p := running.owners()[request.Caller.PID]; p != nil {
		group = p.group
	}
	s.over.Add(1)
	child := [3]uintptr{uintptr(files[0]), uintptr(files[1]), uintptr(files[2])}
	err = children.start(&s.child, func() (int, error) { return c.spawn(group, child, request.Terminal) })
	if err != nil {
		s.over.Done()
	}
	return err
}

// command works out what sudo's options mean. cwd is a path to the caller's directory.
func (r *sudoRequest) command(cwd string) (*command, error) {
	who, err := lookUser(r.User)
	if err != nil {
		return nil, err
	}
	by := "#" + strconv.Itoa(r.Caller.UID)
	if name := passwd.name(uint32(r.Caller.UID)); name != "" {
		by = name
	}
	argv := make([]string, len(r.Argv))
	for i, a := range r.Argv {
		argv[i] = string(a)
	}
	c := &command{who: who, argv: argv, cwd: cwd}
	told := [][]byte{
		[]byte("SUDO_USER=" + by), []byte("SUDO_UID=" + strconv.Itoa(r.Caller.UID)),
		[]byte("SUDO_GID=" + strconv.Itoa(r.Caller.GID)), []byte("SUDO_COMMAND=" + strings.Join(argv, " ")),
	}
	if c.env, err = environ(who, r.Terminal, defaultEnv(), r.identity(who), r.Env, told); err != nil {
		return nil, err
	}
	if r.Login || r.Shell {
		r.shell(c)
	}
	if len(c.argv) == 0 || c.argv[0] == "" {
		return nil, protocol("sudo: no command")
	}
	if c.program == "" {
		c.program, err = findProgram(c.argv[0], variable(c.env, "PATH"), c.cwd, who)
	}
	return c, err
}

// identity makes the account's variables win over those of the claim, which may be meant for another user.
func (r *sudoRequest) identity(who *account) [][]byte {
	e := [][]byte{[]byte("HOME=" + who.home), []byte("SHELL=" + who.shell)}
	if who.name != "" {
		e = append(e, []byte("USER="+who.name), []byte("LOGNAME="+who.name))
	}
	return e
}

// shell turns the command into one of a shell: -c with the words quoted, or an interactive one.
func (r *sudoRequest) shell(c *command) {
	c.program = variable(c.env, "SHELL")
	name := c.program
	if r.Login {
		c.program = c.who.shell
		name = "-" + path.Base(c.program)
		c.cwd = c.who.home
	}
	words := c.argv
	c.argv = []string{name}
	if len(words) > 0 {
		for i, w := range words {
			words[i] = quote(w)
		}
		c.argv = append(c.argv, "-c", strings.Join(words, " "))
	}
}

// quote escapes every character that could mean something to a shell, as sudo does.
func quote(word string) string {
	var b strings.Builder
	for i := 0; i < len(word); i++ {
		switch ch := word[i]; {
		case ch == '\n':
			b.WriteString("'\n'")
			continue
		case ch >= 'a' && ch <= 'z' || ch >= 'A' && ch <= 'Z' || ch >= '0' && ch <= '9' || ch == '_' || ch == '-' || ch == '$' || ch >= 0x80:
		default:
			b.WriteByte('\\')
		}
		b.WriteByte(word[i])
	}
	return b.String()
}

// send writes one packet; a client that is gone gets none.
func (s *sudoSession) send(reply sudoReply) {
	if _, err := s.socket.Write(mustJSON(reply)); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, os.ErrClosed) {
		logf("sudo: %v", err)
	}
}

// receiveFiles reads one packet of JSON and at most so many descriptors.
func receiveFiles(socket *os.File, limit int) (packet []byte, files []int, err error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	packet = make([]byte, frameLimit)
	control := make([]byte, syscall.CmsgSpace(4*limit))
	var n, m int
	waiting := raw.Read(func(fd uintptr) bool {
		n, m, _, _, err = syscall.Recvmsg(int(fd), packet, control, syscall.MSG_CMSG_CLOEXEC)
		return err != syscall.EAGAIN
	})
	if waiting != nil {
		return nil, nil, waiting
	}
	if err != nil {
		return nil, nil, failed(err, "sudo")
	}
	messages, err := syscall.ParseSocketControlMessage(control[:m])
	if err != nil {
		return nil, nil, failed(err, "sudo")
	}
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err == nil {
			files = append(files, fds...)
		}
	}
	return packet[:n], files, nil
}
