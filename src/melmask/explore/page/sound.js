/** Plays one sound at a time: a sound of the collection, or a blob that was made. */
import { byId, toast } from "./dom.js";

const SETTLED_MS = 40;

export class Player {
  #source;
  #blobUrl = null;
  #waiting = 0;

  constructor(source) {
    this.#source = source;
    this.audio = byId("player");
    /** Whether moving over the map plays what is under the pointer. */
    this.onMove = false;
    this.#button().addEventListener("click", () => this.toggle());
  }

  #button() {
    return byId("sound");
  }

  toggle() {
    this.onMove = !this.onMove;
    this.#button().setAttribute("aria-pressed", this.onMove);
    this.#button().textContent = this.onMove ? "♪ Sound on" : "♪ Sound off";
    if (!this.onMove) this.stop();
    toast(this.onMove ? "Moving over the map plays the sounds." : "Moving over the map is silent.");
  }

  /** Play what is under the pointer or the keys, if that is switched on. */
  touch(id) {
    // Passing over points on the way to another one asks for none of their sounds.
    clearTimeout(this.#waiting);
    if (this.onMove && id !== null) this.#waiting = setTimeout(() => this.play(id), SETTLED_MS);
  }

  play(id) {
    const url = this.#source.soundUrl(id);
    if (url === null) toast("This page has no recording of this sound.");
    else this.#start(url);
  }

  /** Play a sound, or stop it where it is already playing. */
  playOrStop(id) {
    const url = this.#source.soundUrl(id);
    if (url !== null && !this.audio.paused && this.audio.src === new URL(url, document.baseURI).href) this.stop();
    else this.play(id);
  }

  playBlob(blob) {
    this.stop();
    this.#blobUrl = URL.createObjectURL(blob);
    this.#start(this.#blobUrl);
  }

  stop() {
    this.audio.pause();
    if (this.#blobUrl !== null) URL.revokeObjectURL(this.#blobUrl);
    this.#blobUrl = null;
  }

  #start(url) {
    this.audio.src = url;
    this.audio.play().catch((error) => {
      // The next sound interrupts this one while it loads: that is how moving over the map is meant to be.
      if (error.name === "NotAllowedError") toast("The browser allows sound after the first click or key.", true);
      else if (error.name !== "AbortError") toast("This sound cannot be played.", true);
    });
  }
}
