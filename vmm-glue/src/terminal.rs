//! The terminal in front of a person: its size, and the mode in which every key goes to the guest.
//!
//! Invariant: the terminal is as it was when the value is dropped.

use sandbox_protocol::Window;
use std::io;

/// A terminal in raw mode.
pub struct Terminal {
    before: libc::termios,
}

impl Terminal {
    /// Puts the terminal on standard input into raw mode; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be changed.
    pub fn raw() -> io::Result<Option<Self>> {
        // SAFETY: the calls fill and read plain memory that lives through them.
        unsafe {
            if libc::isatty(0) == 0 {
                return Ok(None);
            }
            let mut before: libc::termios = std::mem::zeroed();
            if libc::tcgetattr(0, &mut before) != 0 {
                return Err(io::Error::last_os_error());
            }
            let mut raw = before;
            libc::cfmakeraw(&mut raw);
            if libc::tcsetattr(0, libc::TCSANOW, &raw) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Some(Self { before }))
        }
    }

    /// The size of the terminal on standard output, or a usual one.
    pub fn size() -> Window {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the call fills plain memory that lives through it.
        let found = unsafe { libc::ioctl(1, libc::TIOCGWINSZ, &mut size) } == 0 && size.ws_row > 0;
        if found {
            Window { rows: size.ws_row, columns: size.ws_col }
        } else {
            Window { rows: 24, columns: 80 }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // SAFETY: the call reads plain memory that lives through it.
        unsafe { libc::tcsetattr(0, libc::TCSANOW, &self.before) };
    }
}
