package main

import (
	"bytes"
	"path"
	"strings"
	"syscall"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environ lays the variables of a process over each other: first the agent's own defaults, then those of the account, of the claim, of the request.
func environ(who *account, terminal bool, layers ...[][]byte) ([]string, error) {
	values := map[string]string{"PATH": defaultPath, "HOME": who.home, "SHELL": who.shell}
	order := []string{"PATH", "HOME", "SHELL"}
	if who.name != "" {
		values["USER"], values["LOGNAME"] = who.name, who.name
		order = append(order, "USER", "LOGNAME")
	}
	if terminal {
		values["TERM"] = "xterm-256color"
		order = append(order, "TERM")
	}
	for _, layer := range layers {
		for _, variable := range layer {
			key, value, ok := bytes.Cut(variable, []byte("="))
			if !ok || len(key) == 0 || bytes.IndexByte(variable, 0) >= 0 {
				return nil, protocol("environment variable %q is not K=V", variable)
			}
			if _, known := values[string(key)]; !known {
				order = append(order, string(key))
			}
			values[string(key)] = string(value)
		}
	}
	list := make([]string, len(order))
	for i, key := range order {
		list[i] = key + "=" + values[key]
	}
	return list, nil
}

// variable returns the value of a key in K=V strings.
func variable(list []string, key string) string {
	for _, entry := range list {
		if k, v, _ := strings.Cut(entry, "="); k == key {
			return v
		}
	}
	return ""
}

// findProgram looks a name without a slash up in PATH as execvp does: the first that may be executed, else EACCES when one was there, else ENOENT.
func findProgram(name, search, cwd string, who *account) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var found error = syscall.ENOENT
	for _, dir := range strings.Split(search, ":") {
		if dir == "" {
			dir = "."
		}
		candidate := dir + "/" + name
		at := candidate
		if !path.IsAbs(at) {
			at = cwd + "/" + at
		}
		var st syscall.Stat_t
		if err := syscall.Stat(at, &st); err != nil {
			continue
		}
		if st.Mode&syscall.S_IFMT == syscall.S_IFREG && who.may(&st, 1) {
			return candidate, nil
		}
		found = syscall.EACCES
	}
	return "", failed(found, name)
}

// may tells whether the mode bits allow access: 1 execute or search, 2 write, 4 read.
func (a *account) may(st *syscall.Stat_t, want uint32) bool {
	switch {
	case a.uid == 0:
		return want != 1 || st.Mode&syscall.S_IFMT == syscall.S_IFDIR || st.Mode&0o111 != 0
	case a.uid == st.Uid:
		return st.Mode>>6&want == want
	case a.inGroup(st.Gid):
		return st.Mode>>3&want == want
	default:
		return st.Mode&want == want
	}
}

func (a *account) inGroup(gid uint32) bool {
	if a.gid == gid {
		return true
	}
	for _, g := range a.groups {
		if g == gid {
			return true
		}
	}
	return false
}
