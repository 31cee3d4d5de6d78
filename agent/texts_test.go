package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestMeminfoTellsTheLimit(t *testing.T) {
	got := limitedMeminfo("MemTotal:       24684084 kB\nMemFree:        24677108 kB\nMemAvailable:   24677108 kB\nCached:             4532 kB\n", 524288)
	want := "MemTotal:         524288 kB\nMemFree:          517312 kB\nMemAvailable:     517312 kB\nCached:             4532 kB\n"
	if got != want {
		t.Errorf("got\n%s", got)
	}
	full := meminfoFields(limitedMeminfo("MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 200 kB\n", 500))
	if full["MemFree"] != 0 || full["MemAvailable"] != 0 || full["MemTotal"] != 500 {
		t.Errorf("more used than allowed: %v", full)
	}
}

func TestCPUsAreCut(t *testing.T) {
	if got := firstCPUs("processor: 0\nx: 1\n\nprocessor: 1\nx: 1\n\n", 1); got != "processor: 0\nx: 1\n\n" {
		t.Errorf("cpuinfo %q", got)
	}
	if got := firstCPUs("processor: 0\n\n", 4); got != "processor: 0\n\n" {
		t.Errorf("cpuinfo of more than there are %q", got)
	}
	if got := statOfCPUs("cpu  1 2\ncpu0 1\ncpu1 1\ncpu10 1\nintr 5\n", 1); got != "cpu  1 2\ncpu0 1\nintr 5\n" {
		t.Errorf("stat %q", got)
	}
}

func TestStatOfStrangeNames(t *testing.T) {
	s, ok := parseStat("12 (a) b (c) S 1 12 12 0 -1 0 0 0 0 0 150 50 0 0 20 0 3 0 0 0 77 0")
	if !ok || s.comm != "a) b (c" || s.state != "S" || s.ppid != 1 || s.ticks != 200 || s.threads != 3 || s.pages != 77 {
		t.Errorf("%+v %v", s, ok)
	}
	for _, bad := range []string{"", "1", ")(", "1 (x) S"} {
		if _, ok := parseStat(bad); ok {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestListenersAreFound(t *testing.T) {
	text := `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17 1 0 0
   1: 0100007F:1F91 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 18 1 0 0
   2: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 19 1
   3: nonsense 00000000:0000 0A 0 0 0 0 0 1 1
`
	got := parseListeners(text)
	if len(got) != 2 || got[0].port != 8080 || got[0].address.String() != "127.0.0.1" || got[0].inode != "17" || got[1].address.String() != "::1" || got[1].port != 80 {
		t.Errorf("%+v", got)
	}
}

// useAccounts puts files of the test in place of /etc/passwd and /etc/group.
func useAccounts(t *testing.T, users, groups string) {
	t.Helper()
	dir := t.TempDir()
	oldUsers, oldGroups := passwd, group
	t.Cleanup(func() { passwd, group = oldUsers, oldGroups })
	passwd, group = &database{path: filepath.Join(dir, "passwd")}, &database{path: filepath.Join(dir, "group")}
	for path, text := range map[string]string{passwd.path: users, group.path: groups} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUsers(t *testing.T) {
	useAccounts(t, "root:x:0:0::/root:/bin/bash\n# no:x:9:9::/:\ndev:x:1000:1000::/home/dev:/bin/zsh\nbroken:x:zwei:1::/:\n\n",
		"dev:x:1000:\ndocker:x:50:ann,dev\nwheel:x:60:dev\n")
	for spec, want := range map[string]account{
		"":           {uid: 0, gid: 0, hasGroup: true, name: "root", home: "/root", shell: "/bin/bash"},
		"dev":        {uid: 1000, gid: 1000, hasGroup: true, groups: []uint32{50, 60}, name: "dev", home: "/home/dev", shell: "/bin/zsh"},
		"1000":       {uid: 1000, gid: 1000, hasGroup: true, groups: []uint32{50, 60}, name: "dev", home: "/home/dev", shell: "/bin/zsh"},
		"dev:docker": {uid: 1000, gid: 50, hasGroup: true, name: "dev", home: "/home/dev", shell: "/bin/zsh"},
		"77:88":      {uid: 77, gid: 88, hasGroup: true, home: "/", shell: "/bin/sh"},
		"77":         {uid: 77, home: "/", shell: "/bin/sh"},
	} {
		got, err := lookUser(spec)
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%q: %+v, %v", spec, got, err)
		}
	}
	for _, spec := range []string{"nobody-here", "dev:nogroup", "broken", "-1", "4294967295", "no", "#"} {
		if got, err := lookUser(spec); !hasCode(err, "ENOUSER") {
			t.Errorf("%q: %+v, %v", spec, got, err)
		}
	}
}

func TestUsersWithoutFiles(t *testing.T) {
	old := passwd
	t.Cleanup(func() { passwd = old })
	passwd = &database{path: "/nonexistent/passwd"}
	who, err := lookUser("root")
	if err != nil || who.uid != 0 || who.home != "/root" {
		t.Errorf("%+v, %v", who, err)
	}
}

func TestEnvironmentLayers(t *testing.T) {
	who := &account{name: "dev", home: "/home/dev", shell: "/bin/sh"}
	got, err := environ(who, true, [][]byte{[]byte("PATH=/opt"), []byte("A=1")}, [][]byte{[]byte("A=2"), []byte("EMPTY="), []byte("X=a=b")})
	want := "PATH=/opt HOME=/home/dev SHELL=/bin/sh USER=dev LOGNAME=dev TERM=xterm-256color A=2 EMPTY= X=a=b"
	if err != nil || strings.Join(got, " ") != want {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"novalue", "=x", "A=\x00"} {
		if _, err := environ(who, false, [][]byte{[]byte(bad)}); !hasCode(err, "EPROTO") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestSudoCommandLines(t *testing.T) {
	environment := []string{"HOME=/home/dev", "PATH=/x", "LC_ALL=C", "TERM=vt100", "SECRET=1", "SHELL=/bin/zsh", "USER=dev"}
	for line, want := range map[string]string{
		"ls -l":                    "root| ls -l|TERM LC_ALL|",
		"-n -u dev -- ls":          "dev| ls|TERM LC_ALL|",
		"-nudev ls":                "dev| ls|TERM LC_ALL|",
		"--user=dev --group=g ls":  "dev:g| ls|TERM LC_ALL|",
		"-g 50 ls":                 "root:50| ls|TERM LC_ALL|",
		"A=b ls":                   "root| ls|TERM LC_ALL A|",
		"-E ls":                    "root| ls|HOME PATH TERM LC_ALL SECRET SHELL|",
		"-EH ls":                   "root| ls|PATH TERM LC_ALL SECRET SHELL|",
		"--preserve-env=SECRET ls": "root| ls|TERM LC_ALL SECRET|",
		"-i":                       "root|login |TERM LC_ALL|",
		"-s echo x":                "root|shell echo x|TERM LC_ALL SHELL|",
		"-k ls":                    "root| ls|TERM LC_ALL|",
		"-v":                       "root| |TERM LC_ALL|v",
		"-h":                       "root| |TERM LC_ALL|h",
	} {
		o, err := parseSudo(strings.Fields(line), environment)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		kept := map[string]bool{}
		for _, v := range o.request.Env {
			name, _, _ := strings.Cut(string(v), "=")
			kept[name] = true
		}
		mode := ""
		if o.request.Login {
			mode = "login"
		} else if o.request.Shell {
			mode = "shell"
		}
		words := make([]string, len(o.request.Argv))
		for i, w := range o.request.Argv {
			words[i] = string(w)
		}
		user := o.request.User
		if user == "" {
			user = "root"
		}
		parts := strings.Split(want, "|")
		wantKept := map[string]bool{}
		for _, name := range strings.Fields(parts[2]) {
			wantKept[name] = true
		}
		only := ""
		if o.only != 0 {
			only = string(o.only)
		}
		if user != parts[0] || mode+" "+strings.Join(words, " ") != parts[1] || !reflect.DeepEqual(kept, wantKept) || only != parts[3] {
			t.Errorf("%s: %s|%s %s|%v|%s", line, user, mode, strings.Join(words, " "), kept, only)
		}
	}
	for _, line := range []string{"", "-u", "-z ls", "--frobnicate ls", "-i -s", "-h otherhost ls"} {
		if o, err := parseSudo(strings.Fields(line), nil); err == nil {
			t.Errorf("%q: %+v", line, o)
		}
	}
}

func TestQuotedWordsReachTheShell(t *testing.T) {
	if got := quote("a b'$X\n;é"); got != `a\ b\'$X'`+"\n"+`'\;é` {
		t.Errorf("%q", got)
	}
}

func TestTreeOrder(t *testing.T) {
	sorted := []string{"/a", "/a/b", "/a/b/c", "/a/c", "/a-b", "/b"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := treeLess(a, b); got != (i < j) {
				t.Errorf("treeLess(%s, %s) is %v", a, b, got)
			}
		}
	}
}
