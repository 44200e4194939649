package holder

import (
	"encoding/binary"
	"errors"
)

// Questions are what the holder's process wants to know of the server, or have done by it. They mean nothing to the holder. Those
// that a server has not answered when it dies are put to the next.
type Questions struct {
	put   chan *question
	ended chan struct{}
}

type question struct {
	data   []byte
	again  bool // a server has got it and died
	answer chan []byte
}

// NewQuestions returns what [Config].Questions takes.
func NewQuestions() *Questions {
	return &Questions{put: make(chan *question), ended: make(chan struct{})}
}

// ErrEnded is the answer when there is no server any more, nor will be.
var ErrEnded = errors.New("the mount has ended")

// Ask puts a question, of at most 8 KiB, and waits for the answer. Run must have been called or be about to be.
func (q *Questions) Ask(data []byte) ([]byte, error) {
	asked := &question{data: data, answer: make(chan []byte, 1)}
	select {
	case q.put <- asked:
	case <-q.ended:
		return nil, ErrEnded
	}
	select {
	case answer := <-asked.answer:
		return answer, nil
	case <-q.ended:
		return nil, ErrEnded
	}
}

func (q *Questions) coming() <-chan *question {
	if q == nil {
		return nil
	}
	return q.put
}

func (q *Questions) end() {
	if q != nil {
		close(q.ended)
	}
}

// ask puts a question to the server, if there is one; else to the next.
func (h *holder) ask(q *question) {
	h.questions++
	h.asked[h.questions] = q
	if h.serving != nil && !h.serving.ready.IsZero() {
		h.put(h.questions, q)
	}
}

func (h *holder) put(id uint64, q *question) {
	kind := byte(packetQuestion)
	if q.again {
		kind = packetAgain
	}
	q.again = true
	_ = send(h.serving.sock, kind, Kept{Data: append(binary.NativeEndian.AppendUint64(nil, id), q.data...)}) // the next one gets it then
}

// askAgain puts to a new server what has no answer.
func (h *holder) askAgain() {
	for id, q := range h.asked {
		h.put(id, q)
	}
}

func (h *holder) answered(b []byte) {
	if len(b) < 8 {
		return
	}
	id := binary.NativeEndian.Uint64(b)
	if q := h.asked[id]; q != nil {
		delete(h.asked, id)
		q.answer <- b[8:]
	}
}

// Answer has do answer the questions of the holder's process, each in a goroutine of its own. again says that a server that has
// died may have done already what it is about. It is called before [Link.Ready].
func (l *Link) Answer(do func(question []byte, again bool) []byte) { l.answer = do }

func (l *Link) question(b []byte, again bool) {
	if len(b) < 8 || l.answer == nil {
		return
	}
	_ = l.send(packetAnswer, Kept{Data: append(b[:8:8], l.answer(b[8:], again)...)}) // without a holder nobody asks any more
}
