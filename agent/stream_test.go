package main

import (
	"bytes"
	"math/rand"
	"sync"
	"testing"
	"time"
)

// A ring is a queue of bytes, however it is filled and emptied.
func FuzzRing(f *testing.F) {
	f.Add([]byte{5, 200, 3, 255, 255, 0, 9})
	f.Fuzz(func(t *testing.T, steps []byte) {
		r := ring{limit: 5000}
		var model []byte
		next := byte(0)
		for i, step := range steps {
			if i%2 == 0 {
				p := make([]byte, int(step)*13)
				for j := range p {
					next++
					p[j] = next
				}
				model = append(model, p[:r.put(p)]...)
			} else {
				n := min(int(step)*11, len(model))
				r.drop(n)
				model = model[n:]
			}
			var got []byte
			for len(got) < r.size {
				got = append(got, r.at(len(got))...)
			}
			if !bytes.Equal(got, model) {
				t.Fatalf("step %d: holds %d bytes, should hold %d", i, len(got), len(model))
			}
		}
	})
}

// wire carries data and acks between an outlet and an inlet, and loses what the test tells it to.
type wire struct {
	mu    sync.Mutex
	down  bool
	out   *outlet
	in    *inlet
	lose  func() bool
	most  uint64 // the most bytes that were sent beyond the last ack
	acked uint64
}

func (w *wire) sendData(h header, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		return errNotOpen
	}
	if end := h.offset + uint64(len(payload)); end > w.acked {
		w.most = max(w.most, end-w.acked)
	}
	if w.lose() {
		w.down = true // as when the node is killed with the frame in its hands
		return nil
	}
	w.in.accept(h.offset, payload, h.flags&flagFin != 0)
	return nil
}

func (w *wire) sendAck(_ uint32, _ uint16, offset uint64, window uint32) {
	w.mu.Lock()
	w.acked = max(w.acked, offset)
	down := w.down
	w.mu.Unlock()
	if !down {
		w.out.ack(offset, window)
	}
}

// Nothing is lost or doubled and no window overrun when the node is replaced again and again in the middle of a stream.
func TestStreamSurvivesReplacedNodes(t *testing.T) {
	for seed := int64(0); seed < 20; seed++ {
		random := rand.New(rand.NewSource(seed))
		window := minWindow << random.Intn(4)
		w := &wire{lose: func() bool { return random.Intn(20) == 0 }}
		w.out = newOutlet(w, 1, streamOut, window)
		w.in = newInlet(w, 1, window)
		sent := make([]byte, 200000)
		random.Read(sent)
		go func() {
			if _, err := w.out.Write(sent); err != nil {
				t.Error(err)
			}
			w.out.finish()
		}()
		done := make(chan []byte)
		go func() {
			var got []byte
			for {
				piece, end, ok := w.in.next()
				if end || !ok {
					w.in.end()
					done <- got
					return
				}
				got = append(got, piece...)
				w.in.use(len(piece))
			}
		}()
		var got []byte
		for got == nil {
			select {
			case got = <-done:
			case <-time.After(time.Millisecond): // a new node says hello
				w.mu.Lock()
				w.down = false
				w.acked, _ = w.in.offsets()
				w.out.rewind(w.acked, true)
				w.mu.Unlock()
				w.out.flush()
			}
		}
		if !bytes.Equal(got, sent) {
			t.Fatalf("seed %d: %d bytes came of %d", seed, len(got), len(sent))
		}
		if w.most > uint64(window) {
			t.Errorf("seed %d: %d bytes beyond the ack, the window is %d", seed, w.most, window)
		}
	}
}

type deaf struct{ acks []uint64 }

func (d *deaf) sendAck(_ uint32, _ uint16, offset uint64, _ uint32) { d.acks = append(d.acks, offset) }

func TestInletTakesEachByteOnce(t *testing.T) {
	d := &deaf{}
	in := newInlet(d, 1, minWindow)
	in.accept(0, []byte("abc"), false)
	in.accept(1, []byte("bcd"), false)                  // the new part is taken
	in.accept(9, []byte("x"), false)                    // beyond a gap: dropped
	if in.accept(4, make([]byte, minWindow+1), false) { // beyond the window
		t.Error("a frame beyond the window was taken")
	}
	in.accept(4, nil, true)
	piece, _, _ := in.next()
	if string(piece) != "abcd" {
		t.Errorf("got %q", piece)
	}
	in.use(4)
	if _, end, _ := in.next(); !end {
		t.Error("no end")
	}
	in.end()
	if len(d.acks) == 0 || d.acks[len(d.acks)-1] != 4 {
		t.Errorf("acks %v", d.acks)
	}
}

func TestOutletRefusesAcksOfTheUnsent(t *testing.T) {
	w := &wire{down: true}
	o := newOutlet(w, 1, streamOut, minWindow)
	if o.ack(1, minWindow) {
		t.Error("an ack of bytes never sent was taken")
	}
}
