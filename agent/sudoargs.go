package main

import (
	"errors"
	"os"
	"strings"
)

const sudoUsage = `usage: sudo [-EHinS] [-u user] [-g group] [VAR=value] [-i | -s] [command [arg ...]]
       sudo -v | -k | -K | -l | -V | -h
`

// sudoOptions is a parsed command line of sudo.
type sudoOptions struct {
	request sudoRequest
	only    byte // an option that needs no command: v, k, K, l, V or h; else 0
}

var errSudoUsage = errors.New(strings.TrimSpace(sudoUsage))

// sudoKept are the caller's variables that a command gets without -E.
var sudoKept = []string{"TERM", "COLORTERM", "LANG", "LANGUAGE", "DISPLAY", "TZ", "NO_COLOR"}

// parseSudo reads the options of sudo that make sense here. Those about passwords are accepted, since none is asked; what can't be done is an error.
func parseSudo(args, environment []string) (*sudoOptions, error) {
	o := &sudoOptions{}
	user, group := "", ""
	preserve, setHome := false, false
	var keep []string
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "-" {
		word := args[0]
		args = args[1:]
		if word == "--" {
			break
		}
		if strings.HasPrefix(word, "--") {
			name, value, given := strings.Cut(word[2:], "=")
			short, ok := sudoLong[name]
			if !ok {
				return nil, errSudoUsage
			}
			if short == 'E' && given {
				keep = append(keep, strings.Split(value, ",")...)
				continue
			}
			word = "-" + string(short)
			if given {
				word += value
			}
		}
		for letters := word[1:]; letters != ""; {
			letter := letters[0]
			letters = letters[1:]
			value := ""
			if strings.IndexByte("ugphCrtTDR", letter) >= 0 && !(letter == 'h' && letters == "" && len(args) == 0) {
				value, letters = letters, ""
				if value == "" {
					if len(args) == 0 {
						return nil, errSudoUsage
					}
					value, args = args[0], args[1:]
				}
			}
			switch letter {
			case 'n', 'S', 'A', 'B', 'P', 'p':
			case 'E':
				preserve = true
			case 'H':
				setHome = true
			case 'u':
				user = strings.TrimPrefix(value, "#")
			case 'g':
				group = strings.TrimPrefix(value, "#")
			case 'i':
				o.request.Login = true
			case 's':
				o.request.Shell = true
			case 'b':
				o.request.Background = true
			case 'v', 'k', 'K', 'l', 'V':
				o.only = letter
			case 'h':
				if value != "" {
					return nil, errors.New("another host can't be asked")
				}
				o.only = 'h'
			default:
				return nil, errSudoUsage
			}
		}
	}
	o.request.User = user
	if group != "" {
		if user == "" {
			user = "root"
		}
		o.request.User = user + ":" + group
	}
	if o.request.Login && o.request.Shell {
		return nil, errors.New("you may not specify both the '-i' and '-s' options")
	}
	var own [][]byte
	for len(args) > 0 && strings.Contains(args[0], "=") && !strings.HasPrefix(args[0], "=") && !strings.Contains(args[0][:strings.IndexByte(args[0], '=')], "/") {
		own = append(own, []byte(args[0]))
		args = args[1:]
	}
	if o.only == 'k' && len(args) > 0 { // with a command it only means not to remember the password
		o.only = 0
	}
	for _, a := range args {
		o.request.Argv = append(o.request.Argv, []byte(a))
	}
	if o.only == 0 && len(args) == 0 && !o.request.Login && !o.request.Shell {
		return nil, errSudoUsage
	}
	for _, variable := range environment {
		name, _, _ := strings.Cut(variable, "=")
		if sudoKeeps(name, preserve, setHome, o.request.Shell, keep) {
			o.request.Env = append(o.request.Env, []byte(variable))
		}
	}
	o.request.Env = append(o.request.Env, own...)
	return o, nil
}

// sudoKeeps tells whether the command gets one of the caller's variables.
func sudoKeeps(name string, preserve, setHome, shell bool, keep []string) bool {
	switch name {
	case "":
		return false
	case "USER", "LOGNAME", "SUDO_USER", "SUDO_UID", "SUDO_GID", "SUDO_COMMAND":
		return false
	case "HOME":
		if setHome {
			return false
		}
	case "SHELL":
		if shell {
			return true
		}
	}
	for _, kept := range append(sudoKept, keep...) {
		if name == kept {
			return true
		}
	}
	return preserve || strings.HasPrefix(name, "LC_")
}

var sudoLong = map[string]byte{
	"user": 'u', "group": 'g', "login": 'i', "shell": 's', "preserve-env": 'E', "set-home": 'H', "non-interactive": 'n', "stdin": 'S',
	"validate": 'v', "reset-timestamp": 'k', "remove-timestamp": 'K', "list": 'l', "version": 'V', "help": 'h', "prompt": 'p', "askpass": 'A',
	"background": 'b', "bell": 'B', "preserve-groups": 'P', "host": 'h',
}

// sudoAlone answers the options that run nothing.
func sudoAlone(option byte) int {
	switch option {
	case 'V':
		_, _ = os.Stdout.WriteString("sudo of Corral " + agentVersion + "\n")
	case 'h':
		_, _ = os.Stdout.WriteString(sudoUsage)
	case 'l':
		_, _ = os.Stdout.WriteString("Every user may run any command as any user in this sandbox, without a password.\n")
	}
	return 0
}
